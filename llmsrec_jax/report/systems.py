"""Which numbers may stand in one table, and what several seeds say together."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from llmsrec_jax import provenance
from llmsrec_jax.report.document import MISSING, Cell, number
from llmsrec_jax.report.kinds import kind
from llmsrec_jax.report.reading import Folder
from llmsrec_jax.schema import BOUND, PLACE, identity

Record = dict[str, Any]
FEWEST = 3  # systems: an order of two is right or wrong, no correlation


class Estimate(NamedTuple):
    """A mean over seeds. `sd` is over them, None of a single one; `se` is over the users of one seed."""

    mean: float
    sd: float | None
    se: float | None
    seeds: tuple[int, ...]

    @property
    def spread(self) -> float:
        """What stands behind ±; 0 where unknown."""
        return (self.se if self.sd is None else self.sd) or 0.0

    def cell(self, seeds: Sequence[int]) -> Cell:
        """In a table of `seeds`; says below it where it stands for fewer."""
        told = number(self.mean)
        if self.sd is not None or self.se is not None:
            told += f" ± {number(self.spread)}"
        if set(self.seeds) >= set(seeds):
            return Cell(told)
        over = "standard error over users" if self.sd is None else "standard deviation over these"
        return Cell(told, f"{seeds_words(self.seeds)} only; ± is the {over}")


def spread_words(seeds: Sequence[int]) -> str:
    if len(seeds) > 1:
        return f"mean ± standard deviation over {seeds_words(seeds)}"
    return f"± standard error over users, {seeds_words(seeds)}"


def seeds_words(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds)) or MISSING}"


@dataclass(frozen=True)
class Group:
    """Records that can be compared: of one dataset and split, and for each seed of one list of candidates.

    `candidates` is '' unless this seed has several lists.
    """

    dataset: str
    split: str
    seeds: list[int]
    candidates: str
    records: list[Record]

    @property
    def title(self) -> str:
        lists = f", candidates {self.candidates}" if self.candidates else ""
        return f"{self.dataset}, {self.split} set, {seeds_words(self.seeds)}{lists}"


def collect(folders: Sequence[Folder]) -> tuple[list[Record], list[str]]:
    """The records of all folders, each once; and warnings of those that contradict each other, the first of which stays."""
    kept: dict[tuple[Any, ...], tuple[Record, str]] = {}
    clashes: dict[str, Record] = {}
    for folder in folders:
        for record in folder.records:
            if record["value"] is None or math.isnan(record["value"]):
                continue  # of no users: the tables have a gap
            earlier, where = kept.setdefault(
                (*identity(record), *kind(record)), (record, folder.name)
            )
            if earlier["value"] != record["value"]:
                clashes.setdefault(
                    f"{record['model']} on {record['dataset']}, seed {record['seed']}, has other values in"
                    f" {folder.name} than in {where}, of the same settings ({record['config_hash']}):"
                    f" those of {where} are shown",
                    record,
                )
    return [record for record, _ in kept.values()], list(clashes)


def groups(records: Iterable[Record]) -> tuple[list[Group], list[str]]:
    """What may stand in one table; and a warning for each seed with several lists of candidates."""
    sets: dict[tuple[str, str], dict[int, dict[str, list[Record]]]] = {}
    for record in records:
        seeds = sets.setdefault((record["dataset"], record["split"]), {})
        lists = seeds.setdefault(record["seed"], {})
        lists.setdefault(record["candidates_hash"], []).append(record)
    found, warnings = [], []
    for (dataset, split), seeds in sorted(sets.items()):
        single = sorted(seed for seed, lists in seeds.items() if len(lists) == 1)
        if single:
            rows = [row for seed in single for rows in seeds[seed].values() for row in rows]
            found.append(Group(dataset, split, single, "", rows))
        for seed in sorted(set(seeds) - set(single)):
            lists = seeds[seed]
            found += [Group(dataset, split, [seed], name, rows) for name, rows in lists.items()]
            warnings.append(
                f"{dataset}, {split} set, seed {seed}: these results were ranked among"
                f" {len(lists)} different lists of candidates ({', '.join(lists)}). Their numbers cannot be"
                " compared, so each list has tables of its own"
            )
    return found, warnings


def systems(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Name -> records: a model, and the settings that tell it from others, whichever seeds they are of.

    Where these are not known, by their hash, if one seed has several.
    """
    rows = sorted(records, key=lambda row: PLACE.get(row["model"], 0))  # stable
    hashes: dict[tuple[str, int], set[str]] = {}
    for row in rows:
        if "settings" not in row:
            hashes.setdefault((row["model"], row["seed"]), set()).add(row["config_hash"])
    twins = {model for (model, _), each in hashes.items() if len(each) > 1}
    found: dict[tuple[str, str], list[Record]] = {}
    for row in rows:
        model, known = row["model"], row.get("settings")
        unknown = row["config_hash"] if model in twins else ""
        variant = unknown if known is None else provenance.variant(known)
        found.setdefault((model, variant), []).append(row)
    apart = provenance.differing(settings(found.values()), [model for model, _ in found])
    told = map(provenance.words, apart)
    named = [
        f"{model} ({words})" if words else model
        for (model, _), words in zip(found, told, strict=True)
    ]
    return {
        f"{name} ({rows[0]['config_hash']})" if named.count(name) > 1 else name: rows
        for name, rows in zip(named, found.values(), strict=True)
    }


def settings(found: Iterable[Sequence[Record]]) -> list[dict[str, Any]]:
    """Of systems; {} where they are not known."""
    return [rows[0].get("settings", {}) for rows in found]


def estimate(records: Iterable[Record]) -> Estimate | None:
    """Of one quantity of one system: one record for each seed; None of none."""
    rows = sorted(records, key=lambda row: row["seed"])
    if not rows:
        return None
    values = np.array([row["value"] for row in rows], float)
    errors = [row["se"] for row in rows if row["se"] is not None]
    return Estimate(
        float(values.mean()),
        float(values.std(ddof=1)) if len(rows) > 1 else None,
        float(np.mean(errors)) if errors else None,
        tuple(row["seed"] for row in rows),
    )


def pick(records: Iterable[Record], **wanted: Any) -> list[Record]:
    return [row for row in records if all(row[name] == value for name, value in wanted.items())]


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation, equal values sharing their mean rank; NaN where one side is all equal."""
    ranks = [_ranks(np.asarray(values, float)) for values in (first, second)]
    a, b = (rank - rank.mean() for rank in ranks)
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    below = (values[:, None] > values).sum(axis=1)
    return below + (values[:, None] == values).sum(axis=1) / 2


def agreement(found: Mapping[str, Sequence[Record]], metric: str, seed: int) -> tuple[float, int]:
    """Rank correlation of sampled and full ranking over systems, and how many; the bound is none."""
    pairs = []
    for name, rows in found.items():
        of = {"metric": metric, "seed": seed, "slice": "all", "condition": "original"}
        both = [pick(rows, protocol=protocol, **of) for protocol in ("sampled", "full")]
        if name != BOUND and all(both):
            pairs.append([rows[0]["value"] for rows in both])
    if len(pairs) < FEWEST:
        return float("nan"), len(pairs)
    return spearman(*zip(*pairs, strict=True)), len(pairs)
