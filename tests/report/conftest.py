"""Work folders as the stages leave them, made by code."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from llmsrec_jax import report

EVIL = '</script><b id="evil">$x_1$ & "quoted" \' <!-- </title>'
MODELS = ("popularity", "teacher", "llm_srec", "bayes bound")
PROTOCOLS = ("sampled", "full")
SLICES = ("all", "warm", "cold")


def record(model: str, seed: int, value: float, **other: Any) -> dict[str, Any]:
    return {
        **{"model": model, "dataset": "shop", "split": "test", "seed": seed, "value": value},
        **{"condition": "original", "protocol": "sampled", "metric": "ndcg@10", "slice": "all"},
        **{"se": 0.01, "users": 100, "candidates_hash": f"list{seed}", "git": "abc"},
        **{"config_hash": f"{model}-{seed}", **other},
    }


def change(first: float, second: float, p: float = 0.001) -> dict[str, Any]:
    difference = second - first
    return {
        **{"first": first, "second": second, "change": difference, "p": p, "users": 100},
        **{"low": difference - 0.01, "high": difference + 0.01},
        **{"relative": difference / first if first else math.nan, "relative_se": 0.008},
    }


def records(seed: int = 0, **other: Any) -> list[dict[str, Any]]:
    """Four systems; full ranking has the same order of systems; shuffling costs the teacher 6.1 %."""
    rows = []
    for place, model in enumerate(MODELS):
        value = 0.1 + 0.2 * place + 0.01 * seed
        for protocol in PROTOCOLS:
            for metric in ("hr@10", "ndcg@10"):
                for number, slice in enumerate(SLICES):
                    worth = (value - 0.02 * number) * (1 if protocol == "sampled" else 0.5)
                    kind = {"protocol": protocol, "metric": metric, "slice": slice}
                    rows.append(record(model, seed, worth, **kind, **other))
    for model, second, p in (("teacher", 0.939, 0.001), ("llm_srec", 0.999, 0.7)):
        value = 0.1 + 0.2 * MODELS.index(model) + 0.01 * seed
        told = {"condition": "shuffled", "change": change(value, value * second, p)}
        rows.append(record(model, seed, value * second, **told, **other))
        cosine = {"condition": "shuffled", "protocol": "user vectors", "metric": "cosine"}
        rows.append(record(model, seed, second, **cosine, **other))
    return rows


def cell(row: str, column: str, mean: float | None, **other: Any) -> dict[str, Any]:
    value = {"seed": 0, "value": mean, "se": 0.01, "users": 100}
    done = {"values": [value], "status": "done", "why": ""}
    undone = {"values": [], "status": "not run", "why": "needs weights that are not here"}
    return {
        **{"row": row, "column": column, "metric": "ndcg@10", "protocol": "sampled"},
        **{"slice": "all", "condition": "original", "published": None, "mean": mean},
        **{"sd": None, "se": None if mean is None else 0.01},
        **(undone if mean is None else done),
        **other,
    }


def experiment(name: str = "table8", **other: Any) -> dict[str, Any]:
    """Two systems in two slices, one of them not run."""
    return {
        **{"schema": 1, "experiment": name, "title": "Ablations", "source": "Table 8"},
        **{"dataset": "shop", "seeds": [0], "choices": {"which vector": "the user head's"}},
        **{"figure": "bars", "rows": ["LLM-SRec", "w/o distillation"], "columns": ["A", "B"]},
        "cells": [
            cell("LLM-SRec", "A", 0.35, published=0.40),
            cell("LLM-SRec", "B", 0.30),
            cell("w/o distillation", "A", 0.33, published=0.32),
            cell("w/o distillation", "B", None, published=0.28),
        ],
        "differences": [
            {
                **{"row": "LLM-SRec", "what": "shuffled against original", "seed": 0},
                **{"metric": "ndcg@10", "protocol": "sampled", "words": "drops by 6.1% ± 0.8%"},
                "difference": change(0.35, 0.3287),
            }
        ],
        **{"overall": [], "histograms": [], "changed": None},
        **other,
    }


def scatter() -> dict[str, Any]:
    """Figure 1: original against shuffled histories."""
    cells = [
        cell(row, column, mean, condition=column)
        for row, x, y in (("SASRec", 0.4, 0.3), ("TALLRec", 0.3, 0.298), (EVIL, 0.35, 0.33))
        for column, mean in (("original", x), ("shuffled", y))
    ]
    rows = list(dict.fromkeys(one["row"] for one in cells))
    told = {"title": "Shuffled histories", "source": "Figure 1", "figure": "scatter"}
    columns = ["original", "shuffled"]
    return experiment("figure1", cells=cells, rows=rows, columns=columns, **told)


def histogram() -> dict[str, Any]:
    """Figure 4: how alike the user vectors of two orders are."""
    edges = [0.0, 0.25, 0.5, 0.75, 1.0]
    bins = [
        {"row": row, "column": "shuffled", "edges": edges, "counts": counts}
        for row, counts in (("SASRec", [10, 40, 40, 10]), ("TALLRec", [0, 0, 5, 95]))
    ]
    means = [("SASRec", 0.5), ("TALLRec", 0.93)]
    kind = {"metric": "cosine", "protocol": "user vectors"}
    cells = [cell(row, "shuffled", mean, **kind) for row, mean in means]
    told = {"title": "Similarity", "source": "Figure 4", "figure": "histogram", "differences": []}
    rows = [row for row, _ in means]
    return experiment(
        "figure4", cells=cells, rows=rows, columns=["shuffled"], histograms=bins, **told
    )


def cases() -> dict[str, Any]:
    """Popularity never is right. Five users: right are both, only the teacher, only llm_srec (twice), neither."""
    models = ["popularity", "teacher", "llm_srec"]
    found = []
    both = ((1, 2), (3, 40), (50, 10), (11, 1), (99, 98))
    for number, ranks in enumerate((50, *two) for two in both):
        target = EVIL if number == 0 else f"Item {number} bought next"
        top = {}
        for model, rank in zip(models, ranks, strict=True):
            top[model] = [f"{model} answer {place}" for place in range(10)]
            if rank <= 10:
                top[model][rank - 1] = target
        found.append(
            {
                **{"user": f"u{number}", "target": target, "top": top},
                "history": [{"date": "2018-03-01", "title": "Tent"}, {"date": "", "title": EVIL}],
                "ranks": dict(zip(models, ranks, strict=True)),
                "hit": {m: rank <= 10 for m, rank in zip(models, ranks, strict=True)},
            }
        )
    where = {"schema": 1, "dataset": "shop", "seed": 0, "candidates_hash": "list0"}
    return {**where, "models": models, "cases": found}


def save(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def make(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A work folder with all there can be."""
    save(folder / "results.json", {"schema": 1, "records": rows})
    save(folder / "config.json", {"seed": 0, "evaluate": {"negatives": 99}})
    card = {"name": "shop", "users": 300, "items": 150, "notes": ["a remark"]}
    save(folder / "data" / "key" / "stage.json", {"info": {"card": card}})
    save(folder / "cases.json", cases())
    for one in (experiment(), scatter(), histogram()):
        save(folder / "experiments" / f"{one['experiment']}.json", one)
    lines = [
        {"stage": "train", "key": "k", "step": s, "epoch": s / 2, "loss": 2 / s, "ndcg@10": s / 10}
        for s in (1, 2, 3)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One finished work folder."""
    return make(tmp_path / "one", records())


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of one finished work folder."""
    base = tmp_path_factory.mktemp("report")
    report.write([make(base / "one", records())], base / "out")
    return base / "out"
