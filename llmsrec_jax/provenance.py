"""What rows of one table were made with, and which settings tell them apart: no row stands beside another one silently."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llmsrec_jax.presets import PRESETS, SYSTEM_WORDS, TEACHER_WORDS
from llmsrec_jax.schema import TOLD_BY_NAME

Settings = Mapping[str, Any]  # {dotted name: value}
SHOWN = 3  # settings in a label
# of what they name, records tell what is in it
CONTENTS = ("alignment.text",)


def variant(settings: Settings) -> str:
    """Equal for the seeds of one configuration, and for nothing else."""
    return json.dumps({name: settings[name] for name in sorted(settings) if name != "seed"})


def _told(name: str, value: Any) -> bool:
    words = TOLD_BY_NAME.get(name, ())
    return words is None or value in words


def _promised(model: str) -> dict[str, Any]:
    """The settings that the name of a model tells: those of the systems it names."""
    words = [word for word in re.split("[ ,]+", model) if word in (*SYSTEM_WORDS, *TEACHER_WORDS)]
    said = {name: value for word in words for name, value in PRESETS[word].items()}
    return {name: value for name, value in said.items() if name not in CONTENTS}


def differing(rows: Sequence[Settings], models: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Of every row the settings that differ among the rows that have them, or from what the row's name (`models`) tells.

    Not the seed, which every table tells, nor what that name tells.
    """
    promised = [_promised(model) for model in models or [""] * len(rows)]
    untold, values, odd = [], dict[str, set[str]](), set[str]()
    for row, usual in zip(rows, promised, strict=True):
        kept = {
            name: _plain(value) == _plain(row.get(name, value)) for name, value in usual.items()
        }
        odd |= {name for name, same in kept.items() if not same}
        told = {"seed", *(name for name, same in kept.items() if same)}
        told |= {name for name, value in row.items() if _told(name, value)}
        untold.append({name: value for name, value in row.items() if name not in told})
        for name, value in untold[-1].items():
            values.setdefault(name, set()).add(json.dumps(value))
    apart = [name for name, each in values.items() if len(each) > 1 or name in odd]
    return [{name: row[name] for name in apart if name in row} for row in untold]


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
    used, models = [settings.get(key, {}) for _, _, key in rows], [model for model, _, _ in rows]
    apart = map(words, differing(used, models))
    named = [
        f"{model} ({told})" if told else model
        for (model, _, _), told in zip(rows, apart, strict=True)
    ]
    places = [(name, beside) for name, (_, beside, _) in zip(named, rows, strict=True)]
    return [
        f"{name} ({key})" if places.count((name, beside)) > 1 else name
        for name, (_, beside, key) in zip(named, rows, strict=True)
    ]
