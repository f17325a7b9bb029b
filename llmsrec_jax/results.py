"""results.json: one list of records for everything; numbers never without protocol and standard error."""

import hashlib
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmsrec_jax import config, provenance, statistics
from llmsrec_jax.checkpoint import read_json, write_json
from llmsrec_jax.provenance import Settings
from llmsrec_jax.schema import (
    BEYOND,
    COSINE,
    COSINE_HIDDEN,
    ORIGINAL,
    PLACE,
    SCHEMA,
    TEACHERS,
    VARIANTS,
    WRITTEN,
    identity,
)
from llmsrec_jax.writer import table

Record = dict[str, Any]
Name = tuple[Any, ...]  # of a row of a table: a model, what stands beside it, its config_hash
SHOWN = ("hr@10", "ndcg@10")
# what every model's numbers depend on
EVALUATION = (
    *("evaluate.negatives", "evaluate.sampling"),
    *("evaluate.ties", "evaluate.mask_seen", "evaluate.score", "slices"),
)
SLICED, LISTS, CHOSEN = TABLES = (
    "ndcg@10, sampled ranking, by slice",
    "lists beyond accuracy, full ranking",
    "one of the candidates, and what greedy decoding writes",
)
ALIKE = {COSINE: "user vectors", COSINE_HIDDEN: "h_U"}  # metric -> of what (E9)
JOINT = "joint embeddings"  # of A-LLMRec's stage 1
SYSTEMS = {  # name -> as which variant of LLM-SRec the paper has it (2.1, Table 2)
    "a_llmrec": {"llm_srec w/o distill, uniformity", "user representation", JOINT},
    "tallrec": {"llm_srec w/o distill, uniformity", "titles only", "LoRA"},
    "collm": {"llm_srec w/o distill, uniformity", "user representation", "LoRA first"},
    "llara": {"llm_srec w/o distill, uniformity", "LoRA"},
}


def trained(name: str, cfg: config.Config) -> str:
    """Of a model, and the order of its training sequences where it is not their own (E6)."""
    return name if cfg.order.train == "original" else f"{name}, {cfg.order.train} training"


def label(cfg: config.Config) -> str:
    """`llm_srec`, which of its losses is switched off (Table 8), and what else it is a variant in."""
    off = [
        name
        for name, weight in (("distill", cfg.distill.weight), ("uniformity", cfg.uniformity.weight))
        if weight == 0
    ]
    name = "llm_srec" + (f" w/o {', '.join(off)}" if off else "")
    others = _words(cfg, VARIANTS)
    if cfg.lora.exists:
        others.append("LoRA" if cfg.lora.trains else "LoRA first")
    others += [JOINT] * cfg.alignment.trains
    for system, parts in SYSTEMS.items():
        if {name, *others} >= parts:
            name, others = system, [words for words in others if words not in parts]
    if told := _words(cfg, TEACHERS):
        others.append(" ".join(["teacher", *told]))
    return trained(", ".join([name, *others]), cfg)


def teacher(cfg: config.Config) -> str:
    """`teacher`, and which model it is where it is not SASRec with BCE."""
    return trained(" ".join(["teacher", *_words(cfg, TEACHERS)]), cfg)


def _words(cfg: config.Config, table: Mapping[tuple[str, Any], str]) -> list[str]:
    """What it says of the settings of `cfg`."""
    values = {setting: value for setting, value, _ in config.flatten(cfg)}
    return [words for (setting, value), words in table.items() if values[setting] == value]


def names(cfg: config.Config) -> dict[str, str]:
    """What trained models are called."""
    return {"teacher": teacher(cfg), "llm_srec": label(cfg)}


def transferred(name: str, trained_on: str, unseen: str) -> str:
    """Of a model on another dataset than its own, and what its unseen items have for CF embeddings (E13)."""
    return f"{name} from {trained_on}, unseen items {unseen}"


def digest(candidates: np.ndarray) -> str:
    """What tells candidate sets apart: numbers of different ones cannot be compared."""
    return hashlib.blake2b(candidates.tobytes(), digest_size=8).hexdigest()


def common(
    cfg: config.Config, used: Settings, dataset: str, trained_on: str, candidates_hash: str
) -> Record:
    """What the records of one model share; `used` are all settings that its numbers depend on."""
    return {
        "dataset": dataset,
        "trained_on": trained_on,
        "split": "test",
        "seed": cfg.seed,
        "candidates_hash": candidates_hash,
        "config_hash": config.key(used),
        "git": _git(),
    }


def _git() -> str:
    """Commit of the installed source tree; '' outside a repository."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except OSError:
        return ""


def read(path: Path) -> list[Record]:
    """The records of a results file; none where there is no file.

    Raises:
      ValueError: a damaged file, or one of another schema.
    """
    return _content(path)["records"]


def settings(path: Path) -> dict[str, Settings]:
    """{config_hash: {dotted setting: value}} of its records, as far as it says; raises what `read` raises."""
    return _content(path).get("settings", {})


def _content(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.exists() else {"schema": SCHEMA, "records": []}
    schema = found.get("schema") if isinstance(found, dict) else "none"
    if schema != SCHEMA:
        raise ValueError(
            f"{path}: schema {schema}, this version reads {SCHEMA}: move the file away and run again"
        )
    return found


def merge(path: Path, rows: list[Record], used: dict[str, Settings]) -> list[Record]:
    """Writes `rows` into the file in place of earlier records of the same models; returns all of them.

    used: the settings behind their config_hash.

    Raises:
      ValueError: a damaged file, or one of another schema.
    """
    new = {identity(row) for row in rows}
    merged = [row for row in read(path) if identity(row) not in new] + rows
    every = settings(path) | used
    kept = dict.fromkeys(row["config_hash"] for row in merged)
    known = {key: every[key] for key in kept if key in every}
    write_json(path, {"schema": SCHEMA, "records": merged, "settings": known})
    return merged


def cell(row: Record) -> str:
    """Value ± standard error, where it is a mean over users."""
    return f"{row['value']:.4f}" + ("" if row["se"] is None else f" ± {row['se']:.4f}")


def tables(rows: list[Record], like: Record, used: dict[str, Settings]) -> str:
    """Both protocols over all users, sampled ndcg@10 by slice; and what another order of the histories changes, where told.

    Only what can be compared stands together: rows of the dataset and the candidates of `like`. Rows whose settings, `used`,
    differ in more than their models' names say so.
    """
    dataset = like["dataset"]
    same = ("dataset", "candidates_hash")
    rows = [row for row in rows if all(row[k] == like[k] for k in same)]
    rows.sort(key=lambda row: (row["seed"], PLACE.get(row["model"], 0)))
    users = next(row["users"] for row in rows if row["slice"] == "all")
    number = used.get(like["config_hash"], {}).get("evaluate.negatives")
    among = "" if number is None else f", sampled: 1 + {number}"
    first = f"test set of {dataset}, {users} users{among}, mean ± standard error"
    found: dict[str, dict[Name, dict[str, str]]] = {title: {} for title in (first, *TABLES)}
    for row in rows:
        name = (row["model"], row["seed"], row["config_hash"])
        for title, column in _places(row, first):
            found[title].setdefault(name, {})[column] = cell(row)
    written = found[CHOSEN].values()
    if not any(metric in cells for cells in written for metric in WRITTEN):
        found[CHOSEN] = {}
    called = _called({name: None for cells in found.values() for name in cells}, used)
    parts = []
    for title, cells in found.items():
        if not cells:
            continue
        columns = ["model", "seed", *dict.fromkeys(c for row in cells.values() for c in row)]
        body = [
            [called[name], str(name[1]), *(row.get(c, "") for c in columns[2:])]
            for name, row in cells.items()
        ]
        parts.append(f"{title}\n{table(columns, body)}")
    return "\n\n".join([*parts, *_orders(rows, used)])


def _places(row: Record, first: str) -> Iterator[tuple[str, str]]:
    """(table, column) of every place where it is shown."""
    metric, sampled = row["metric"], row["protocol"] == "sampled"
    if row["condition"] != ORIGINAL:
        return
    if sampled and metric == "ndcg@10":
        yield SLICED, row["slice"]
    if row["slice"] != "all":
        return
    if metric in SHOWN:
        yield first, f"{metric} {row['protocol']}"
    if metric.partition("@")[0] in BEYOND:
        yield LISTS, metric
    if metric in WRITTEN or (sampled and metric == "hr@1"):
        yield CHOSEN, metric


def _called(names: Iterable[Name], used: dict[str, Settings]) -> dict[Name, str]:
    """What the rows of a table are called."""
    rows = [*names]
    labels = provenance.labels([(model, rest, key) for model, *rest, key in rows], used)
    return dict(zip(rows, labels, strict=True))


def _orders(rows: list[Record], used: dict[str, Settings]) -> list[str]:
    """A table of the models whose histories were permuted (Fig. 1, Table 5)."""
    cells: dict[Name, dict[str, str]] = {}
    for row in rows:
        if row["condition"] == ORIGINAL or row["slice"] != "all":
            continue
        name = row["model"], row["seed"], row.get("scope", ""), row["config_hash"]
        found = cells.setdefault(name, {})
        if row["metric"] in ALIKE:
            found[f"cosine of {ALIKE[row['metric']]}"] = cell(row)
        if "change" in row and row["metric"] == "ndcg@10":
            told = statistics.Difference(**row["change"])
            found[f"ndcg@10 {row['protocol']}"] = f"{told.first:.4f} -> {told.second:.4f}"
            found[f"{row['protocol']}: in words"] = told.words()
    if not cells:
        return []
    told, called = ["model", "seed", "permuted"], _called(cells, used)
    columns = [*told, *dict.fromkeys(c for found in cells.values() for c in found)]
    body = [
        [called[name], *map(str, name[1:-1]), *(found.get(c, "") for c in columns[len(told) :])]
        for name, found in cells.items()
    ]
    return [f"histories of the test users in another order\n{table(columns, body)}"]
