"""Case studies (Fig. 6): what a user had, what came next, and what every model says of it, by title."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmsrec_jax.checkpoint import read_json, write_json
from llmsrec_jax.data.splits import Dataset
from llmsrec_jax.outcomes import Outcomes
from llmsrec_jax.schema import SCHEMA

KEPT = 200  # users
SHOWN, SHOWN_TITLE = 5, 70  # for the terminal: items of a list, characters
Case = dict[str, Any]
Study = dict[str, Any]  # cases and what they are of; JSON-ready


def _titled(dataset: Dataset) -> Callable[[int], str]:
    catalog = dataset.catalog
    return lambda i: catalog.titles[i] if catalog.has_title[i] else f"item {catalog.keys[i]}"


def collect(outcomes: Outcomes, dataset: Dataset, names: Mapping[str, str], seed: int) -> Study:
    """The first KEPT test users; `names`: what each model is called."""
    users, title = outcomes.users[:KEPT], _titled(dataset)
    histories, targets = dataset.inputs("test", users), dataset.targets("test", users)
    date = lambda time: str(np.datetime64(int(time), "ms").astype("datetime64[D]"))
    ranks = {m: np.add(*one.ranks["sampled"]) + 1 for m, one in outcomes.models.items()}
    right = {m: outcomes.right(m) for m in outcomes.models}
    found = []
    for row, user in enumerate(users):
        items, times = histories[row]
        each = {
            "ranks": {names[m]: int(rank[row]) for m, rank in ranks.items()},
            "top": {names[m]: [title(i) for i in o.top[row]] for m, o in outcomes.models.items()},
            "hit": {names[m]: bool(hit[row]) for m, hit in right.items()},
        }
        history = [{"date": date(t), "title": title(i)} for i, t in zip(items, times, strict=True)]
        about = {"user": str(dataset.user_keys[user]), "target": title(targets[row])}
        found.append(about | {"history": history} | each)
    return {
        "schema": SCHEMA,
        "dataset": dataset.name,
        "seed": seed,
        "candidates_hash": outcomes.candidates,
        "models": [names[m] for m in outcomes.models],
        "cases": found,
    }


def merge(path: Path, found: Study) -> None:
    """Writes the file; models that it has already stay, if they were judged on the same users and candidates."""
    earlier = read_json(path) if path.exists() else {}
    same = ("schema", "dataset", "seed", "candidates_hash")
    if earlier and all(earlier.get(name) == found[name] for name in same):
        for old, new in zip(earlier["cases"], found["cases"], strict=True):
            new.update({what: old[what] | new[what] for what in ("ranks", "top", "hit")})
        found = found | {"models": [*dict.fromkeys([*earlier["models"], *found["models"]])]}
    write_json(path, found)


def render(case: Case, length: int) -> str:
    """One case for a terminal: the last `length` items, what came next, each model's best."""
    short = lambda title: title if len(title) <= SHOWN_TITLE else f"{title[:SHOWN_TITLE]}…"
    history = case["history"]
    last = history[-length:]
    of = "all" if len(last) == len(history) else f"the last {len(last)} of"
    lines = [f"user {case['user']}, {of} {len(history)} items:"]
    lines += [f"    {short(item['title'])}" for item in last]
    lines.append(f"  next: {short(case['target'])} (* where it is among the top {SHOWN})")
    for name, top in case["top"].items():
        marked = [("* " if t == case["target"] else "") + short(t) for t in top[:SHOWN]]
        lines.append(f"  {name}: " + " | ".join(marked))
    return "\n".join(lines)
