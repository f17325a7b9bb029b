"""What a number measures: metric, protocol, slice and condition, of records and of an experiment's cells alike."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Kind = tuple[str, str, str, str]
RANKINGS = ("sampled", "full")


def kind(row: Mapping[str, Any]) -> Kind:
    return row["metric"], row["protocol"], row["slice"], row["condition"]


def parts(of: Kind) -> Kind:
    """In words."""
    metric, protocol, slice, condition = of
    ranking = f"{protocol} ranking" if protocol in RANKINGS else protocol
    users = "all users" if slice == "all" else slice.replace("_", " ")
    return metric, ranking, users, f"{condition} histories"


def told(kinds: Sequence[Kind]) -> tuple[list[list[str]], str]:
    """The words that tell each kind from the others, and those that all of them share."""
    said = [parts(of) for of in kinds]
    shared = [len(set(same)) == 1 for same in zip(*said, strict=True)]
    apart = [[part for part, same in zip(of, shared, strict=True) if not same] for of in said]
    return apart, joined(part for part, same in zip(said[0], shared, strict=True) if same)


def usual(kinds: Sequence[Kind]) -> list[str]:
    """The words that more than half of the kinds share, part by part; '' where there are none."""
    found = []
    for each in zip(*map(parts, kinds), strict=True):
        word, count = Counter(each).most_common(1)[0]
        found.append(word if 2 * count > len(kinds) else "")
    return found


def joined(parts: Iterable[str]) -> str:
    return ", ".join(filter(None, parts))
