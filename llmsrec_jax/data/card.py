"""The data card: what a dataset is and what was done to it, as a dict and as a small text table."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from llmsrec_jax.data.interactions import distinct

if TYPE_CHECKING:
    from llmsrec_jax.data.splits import Dataset

_LABELS = {
    "users": "users",
    "items": "items",
    "interactions": "interactions",
    "length_mean": "interactions per user, mean",
    "length_median": "interactions per user, median",
    "length_max": "interactions per user, most",
    "first_day": "first interaction",
    "last_day": "last interaction",
    "tied_pairs": "neighbours with equal timestamps (order chosen by data.ties)",
    "tied_last_two": "users whose last two interactions are tied",
    "repeated_pairs": "repeated (user, item) at other times, kept",
    "title_coverage": "items with a title",
    "cold_items": "items without training interactions",
    "train_users": "users with a training target",
    "valid_users": "users with a validation target",
    "test_users": "users with a test target",
    "cold_test_targets": "of those, test target is a cold item",
    "repeated_test_targets": "of those, test target is in the user's history: any vector finds itself",
    "users_read": "users in the source",
    "interactions_read": "interactions in the source",
    "exact_duplicates_dropped": "exact duplicate rows, dropped",
    "repeated_pairs_dropped": "later rows of the same user and item, dropped",
    "impossible_timestamps_dropped": "rows with an impossible timestamp, dropped",
    "users_with_one_timestamp": "users whose interactions all have the same timestamp",
    "broken_lines": "lines of the items file that are no item, skipped",
    "rows_out_of_time_order": "rows out of time order, sorted",
    "duplicate_items": "further rows of an item in the items file, ignored",
    "items_without_title": "items of the source without a title",
    "items_not_listed": "items missing from the items file, kept without a title",
    "users_not_sampled": "users outside the sample (data.user_share, data.max_users)",
    "users_dropped_by_kcore": "users dropped by the k-core",
    "items_dropped_by_kcore": "items dropped by the k-core",
    "interactions_dropped_by_kcore": "interactions dropped by the k-core",
    "kcore_rounds": "rounds of the k-core",
    "users_too_short": "users too short to split (under 3), training only",
}
EARLY_MS = 315_532_800_000  # 1980-01-01
_SHARES = ("tied_pairs", "tied_last_two", "title_coverage")


def describe(dataset: "Dataset", counts: dict[str, Any]) -> dict[str, Any]:
    """The card of `dataset`; `counts` is what reading and filtering counted, `table_10` the paper's users, items and
    interactions, `notes` remarks. Shares are in [0, 1]; JSON-ready."""
    known = dataset.known()
    lengths, times = known.lengths, known.times
    test = dataset.test_item[dataset.test_item > 0]
    measured = {
        "name": dataset.name,
        "users": len(dataset),
        "items": dataset.catalog.size - 1,
        "interactions": len(known.items),
        "length_mean": float(lengths.mean()),
        "length_median": float(np.median(lengths)),
        "length_max": int(lengths.max()),
        "first_day": _day(times.min()),
        "last_day": _day(times.max()),
        **tie_report(known),
        "repeated_pairs": _repeated_pairs(dataset),
        "title_coverage": float(dataset.catalog.has_title[1:].mean()),
        "cold_items": int(np.sum(dataset.counts[1:] == 0)),
        "train_users": len(dataset.eligible("train")),
        "valid_users": len(dataset.eligible("valid")),
        "test_users": len(dataset.eligible("test")),
        "cold_test_targets": int(np.sum(dataset.counts[test] == 0)),
        "repeated_test_targets": _repeated_targets(dataset),
    }
    notes = [*counts.get("notes", ()), *_early(times)]
    return {**measured, **counts, **({"notes": notes} if notes else {})}


def _early(times: np.ndarray) -> list[str]:
    """A remark on times that look like another unit: seconds read as milliseconds end up in January 1970."""
    if times.max() >= EARLY_MS:
        return []
    return ["all interactions are before 1980: are they in data.files.time_unit, or only numbered?"]


def tie_report(sequences) -> dict[str, float]:
    """Share of neighbours in time with equal timestamps, and of users (with two or more) whose last two are tied (D39)."""
    times, rows = sequences.times, sequences.rows
    inside = rows[1:] == rows[:-1]
    tied = inside & (times[1:] == times[:-1])
    ends = sequences.offsets[1:][sequences.lengths >= 2] - 1
    return {
        "tied_pairs": float(tied.sum() / max(inside.sum(), 1)),
        "tied_last_two": float(np.mean(times[ends] == times[ends - 1])) if len(ends) else 0.0,
    }


def render_card(card: dict[str, Any]) -> str:
    """The card as aligned text. Counts of things that did not happen are left out."""
    happened = [name for name in _LABELS if card.get(name) not in (None, 0) or name in _SHARES]
    values = {name: _text(name, card[name]) for name in happened if name in card}
    width = max(len(text) for text in values.values())
    published = dict(
        zip(("users", "items", "interactions"), card.get("table_10", ()), strict=False)
    )
    beside = {name: f" (Table 10: {number:,})" for name, number in published.items()}
    lines = [
        f"  {text:>{width}}  {_LABELS[name]}{beside.get(name, '')}" for name, text in values.items()
    ]
    return "\n".join([f"dataset {card['name']}", *lines, *card.get("notes", ())])


def _repeated_pairs(dataset: "Dataset") -> int:
    known = dataset.known()
    pairs = known.rows * dataset.catalog.size + known.items
    return len(pairs) - len(distinct(pairs))


def _repeated_targets(dataset: "Dataset") -> int:
    users = dataset.eligible("test")
    histories, targets = dataset.inputs("test", users), dataset.targets("test", users)
    again = histories.items == targets[histories.rows]
    return len(np.unique(histories.rows[again]))


def _day(time_ms: int) -> str:
    return datetime.fromtimestamp(int(time_ms) / 1000, UTC).strftime("%Y-%m-%d")


def _text(name: str, value: Any) -> str:
    if name in _SHARES:
        return f"{100 * value:.1f} %"
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
