"""results.json: one list of records for everything; numbers never without protocol and standard error."""

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from llmsrec_jax import config, evaluate, statistics
from llmsrec_jax.checkpoint import read_json, write_json
from llmsrec_jax.writer import table

Record = dict[str, Any]
SHOWN = ("hr@10", "ndcg@10")
EVALUATION = ("evaluate.ties", "evaluate.mask_seen", "evaluate.score")  # every model's numbers
# in tables: baselines first, the bound last
PLACE = {"popularity": -2, "teacher": -1, "bayes bound": 1}


def trained(name: str, cfg: config.Config) -> str:
    """Of a model, and the order of its training sequences where it is not their own (E6)."""
    return name if cfg.order.train == "original" else f"{name}, {cfg.order.train} training"


def label(cfg: config.Config) -> str:
    """`llm_srec`, or which of its losses is switched off (Table 8)."""
    off = [
        name
        for name, weight in (("distill", cfg.distill.weight), ("uniformity", cfg.uniformity.weight))
        if weight == 0
    ]
    return trained("llm_srec" + (f" w/o {', '.join(off)}" if off else ""), cfg)


def common(
    cfg: config.Config, fields: dict[str, Any], dataset: str, candidates: np.ndarray
) -> Record:
    """What the records of one model share; `fields` are the settings its numbers depend on."""
    return {
        "dataset": dataset,
        "split": "test",
        "seed": cfg.seed,
        "candidates_hash": hashlib.blake2b(candidates.tobytes(), digest_size=8).hexdigest(),
        "config_hash": config.key(fields | config.subset(cfg, EVALUATION)),
        "git": _git(),
    }


def _git() -> str:
    """Commit of the installed source tree; '' outside a repository."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except OSError:
        return ""


IDENTITY = ("model", "config_hash", "candidates_hash", "dataset", "split", "seed", "condition")


def _identity(record: Record) -> tuple[Any, ...]:
    return tuple(record[k] for k in IDENTITY)


def merge(path: Path, rows: list[Record]) -> list[Record]:
    """Writes `rows` into the file in place of earlier records of the same models; returns all of them."""
    new = {_identity(row) for row in rows}
    earlier = read_json(path) if path.exists() else []
    merged = [row for row in earlier if _identity(row) not in new] + rows
    write_json(path, merged)
    return merged


def tables(rows: list[Record], like: Record) -> str:
    """Both protocols over all users, sampled ndcg@10 by slice; and what another order of the histories changes, where told.

    Only what can be compared stands together: rows of the dataset and the candidates of `like`.
    """
    dataset = like["dataset"]
    same = ("dataset", "candidates_hash")
    rows = [row for row in rows if all(row[k] == like[k] for k in same)]
    rows.sort(key=lambda row: (row["seed"], PLACE.get(row["model"], 0)))
    first = {}
    second = {}
    for row in rows:
        name = (row["model"], row["seed"], row["config_hash"])
        if row["condition"] != evaluate.ORIGINAL:
            continue
        cell = f"{row['value']:.4f} ± {row['se']:.4f}"
        if row["slice"] == "all" and row["metric"] in SHOWN:
            first.setdefault(name, {})[f"{row['metric']} {row['protocol']}"] = cell
        if row["metric"] == "ndcg@10" and row["protocol"] == "sampled":
            second.setdefault(name, {})[row["slice"]] = cell
    users = next(row["users"] for row in rows if row["slice"] == "all")
    parts = []
    named = [(model, seed) for model, seed, _ in first]
    twins = {name for name in named if named.count(name) > 1}  # told apart by their settings
    for title, cells in (
        (f"test set of {dataset}, {users} users, mean ± standard error", first),
        ("ndcg@10, sampled ranking, by slice", second),
    ):
        columns = ["model", "seed", *dict.fromkeys(c for row in cells.values() for c in row)]
        body = [
            [
                f"{model} ({key})" if (model, seed) in twins else model,
                *(str(seed), *(row.get(c, "") for c in columns[2:])),
            ]
            for (model, seed, key), row in cells.items()
        ]
        parts.append(f"{title}\n{table(columns, body)}")
    return "\n\n".join([*parts, *_orders(rows)])


def _orders(rows: list[Record]) -> list[str]:
    """A table of the models whose histories were permuted (Fig. 1, Table 5)."""
    cells: dict[tuple[str, int], dict[str, str]] = {}
    for row in rows:
        if row["condition"] == evaluate.ORIGINAL or row["slice"] != "all":
            continue
        found = cells.setdefault((row["model"], row["seed"]), {})
        if row["metric"] == "cosine":
            found["cosine of user vectors"] = f"{row['value']:.4f} ± {row['se']:.4f}"
        if "change" in row and row["metric"] == "ndcg@10":
            told = statistics.Difference(**row["change"])
            found[f"ndcg@10 {row['protocol']}"] = f"{told.first:.4f} -> {told.second:.4f}"
            found[f"{row['protocol']}: in words"] = told.words()
    if not cells:
        return []
    columns = ["model", "seed", *dict.fromkeys(c for found in cells.values() for c in found)]
    body = [
        [model, str(seed), *(found.get(c, "") for c in columns[2:])]
        for (model, seed), found in cells.items()
    ]
    return [f"histories of the test users in another order\n{table(columns, body)}"]
