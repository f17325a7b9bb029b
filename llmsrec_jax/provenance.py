"""What rows of one table were made with, and which settings tell them apart: no row stands beside another one silently."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llmsrec_jax.schema import TOLD_BY_NAME

Settings = Mapping[str, Any]  # {dotted name: value}
SHOWN = 3  # settings in a label


def variant(settings: Settings) -> str:
    """Equal for the seeds of one configuration, and for nothing else."""
    return json.dumps({name: settings[name] for name in sorted(settings) if name != "seed"})


def _told(name: str, value: Any) -> bool:
    words = TOLD_BY_NAME.get(name, ())
    return words is None or value in words


def differing(rows: Sequence[Settings]) -> list[dict[str, Any]]:
    """Of every row the settings that differ among the rows that have them.

    Not the seed, which every table tells, nor what the name of a model tells.
    """
    values: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "seed" and not _told(name, value):
                values.setdefault(name, set()).add(json.dumps(value))
    apart = [name for name, each in values.items() if len(each) > 1]
    return [{n: row[n] for n in apart if n in row and not _told(n, row[n])} for row in rows]


def words(settings: Settings) -> str:
    """`train.epochs=1, train.lr=0.1`; of many the first ones and their number."""
    said = [f"{name}={_plain(value)}" for name, value in list(settings.items())[:SHOWN]]
    more = [f"{len(settings) - SHOWN} more"] * (len(settings) > SHOWN)
    return ", ".join(said + more)


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def labels(rows: Sequence[tuple[str, Any, str]], settings: Mapping[str, Settings]) -> list[str]:
    """What the rows (model, column that tells rows apart already, config_hash) of one table are called.

    A model, the settings in which it differs from others of the table, and the hash of rows that these do not tell apart.
    """
    apart = map(words, differing([settings.get(key, {}) for _, _, key in rows]))
    named = [
        f"{model} ({told})" if told else model
        for (model, _, _), told in zip(rows, apart, strict=True)
    ]
    places = [(name, beside) for name, (_, beside, _) in zip(named, rows, strict=True)]
    return [
        f"{name} ({key})" if places.count((name, beside)) > 1 else name
        for name, (_, beside, key) in zip(named, rows, strict=True)
    ]
