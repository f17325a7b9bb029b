"""The published files as arrays: interactions from CSV, items from JSON lines. In blocks, by polars; a bad line is named.

CSV: with or without a header, LF or CRLF, quoted or not, .gz or plain; rating_only or the three leave-last-out files.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmsrec_jax.data import filters

if TYPE_CHECKING:
    import polars

_BLOCK = 32 << 20  # bytes read at once
_ROLES = {  # role -> names it goes by in a header
    "user": ("user_id", "user", "reviewerid", "userid"),
    "item": ("parent_asin", "item_id", "asin", "item", "itemid"),
    "time": ("timestamp", "time", "unixreviewtime", "sort_timestamp"),
}
_PUBLISHED = ("user_id", "parent_asin", "rating", "timestamp", "history")
# Amazon's reviews began in 1995; the data end in 2023.
_FIRST_MS, _LAST_MS = 631_152_000_000, 2_524_608_000_000  # the years 1990 to 2049
_BAD_SHARE = 0.1  # of impossible timestamps: a few are dropped, more mean another unit
_NAMED = 5  # lines named in a remark


class Damaged(ValueError):
    """A file that is cut off or not what it should be. `path` is the file."""

    def __init__(self, path: Path, why: object):
        super().__init__(f"{path} is truncated or damaged ({why}): fetch it again")
        self.path = path


@dataclass(frozen=True, eq=False)
class Rows:
    """Interactions by user, each user's in chronological order, no (user, item) twice. Users as the authors meet them (D34)."""

    user: np.ndarray  # int32 [N] row of user_keys
    item: np.ndarray  # int32 [N] row of item_keys
    time: np.ndarray  # int64 [N] ms
    user_keys: "polars.Series"  # text [U]
    item_keys: "polars.Series"  # text [I]
    counts: dict[str, int]
    notes: list[str]


@dataclass(frozen=True, eq=False)
class Items:
    """Metadata of the items of Rows, in their order; '' where there is none."""

    titles: "polars.Series"
    descriptions: "polars.Series"  # the first paragraph (D16)
    counts: dict[str, int]
    notes: list[str]


def interactions(paths: Sequence[Path]) -> Rows:
    """Reads rating_only, or train, valid and test: the same rows.

    Raises:
      Damaged: cut off, or not a packed file.
      ValueError: a row that is no interaction, named by its line.
    """
    import polars

    frames, notes, dropped = [], _Notes(), 0
    for path in paths:
        for first, block in blocks(path):
            if first == 1:
                places, skip = _columns(path, block)
                block, first = _without_lines(block, skip), first + skip
            if not block.strip():
                continue
            frame = _frame(path, first, block, places)
            good = frame["time"].is_between(_FIRST_MS, _LAST_MS, closed="left")
            if not good.all():
                rows = (~good).arg_true()
                dropped += len(rows)
                for row in rows[:_NAMED]:
                    notes.add(f"{path.name}, line {_line(first, block, row)}")
                frame = frame.filter(good)
            frames.append(frame)
    if not frames or sum(map(len, frames)) + dropped == 0:
        raise ValueError(f"{paths[0]} has no rows")
    table = polars.concat(frames, rechunk=True)
    del frames
    if dropped > _BAD_SHARE * (len(table) + dropped):
        raise ValueError(
            f"{notes.named[0]}: {dropped} of {len(table) + dropped} timestamps are outside the years "
            "1990 to 2049: they must be milliseconds since 1970"
        )
    remarks = notes.text(dropped, "interactions with an impossible timestamp (zero or far future)")
    return _rows(table, {"impossible_timestamps_dropped": dropped}, remarks)


def items(path: Path, keys: "polars.Series") -> Items:
    """Title and description of `keys` [I]. The last record of an item counts, as for the authors.

    Raises:
      Damaged: cut off, or not a packed file.
    """
    import polars

    frames, notes, broken = [], _Notes(), 0
    for first, block in blocks(path):
        frame = _records(block)
        if frame is None:  # a line is unusual: one by one
            frame, lines = _records_by_line(block)
            broken += len(lines)
            for line in lines[:_NAMED]:
                notes.add(f"line {first + line}")
        frames.append(frame.filter(polars.col("item").is_in(keys.implode())))
    table = polars.concat(frames) if frames else _no_records()
    found = table.unique("item", keep="last")
    joined = polars.DataFrame({"item": keys}).join(
        found.with_columns(polars.lit(True).alias("listed")),
        on="item",
        how="left",
        maintain_order="left",
    )
    titles, texts = (_one_line(joined[name]) for name in ("title", "description"))
    counts = {
        "items_without_title": int((joined["listed"].fill_null(False) & (titles == "")).sum()),
        "items_not_listed": int(joined["listed"].is_null().sum()),
        "duplicate_items": len(table) - len(found),
        "broken_lines": broken,
    }
    if not joined["listed"].any():
        raise ValueError(
            f"{path} has none of the {len(keys)} items of the interactions: is it of another category?"
        )
    return Items(
        titles, texts, counts, notes.text(broken, f"lines of {path.name} that are no item")
    )


def blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number of its first line, whole lines) of a text file, packed or not.

    Raises:
      Damaged: cut off, or not a packed file.
    """
    opened = gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")
    rest, first = b"", 1
    with opened as file:
        while True:
            try:
                new = file.read(_BLOCK)
            except (EOFError, OSError, zlib.error) as error:
                raise Damaged(path, error) from error
            cut = new.rfind(b"\n") + 1
            if not new:
                break
            if cut:
                block = rest + new[:cut]
                rest = new[cut:]
                yield first, block.removeprefix(b"\xef\xbb\xbf") if first == 1 else block
                first += block.count(b"\n")
            else:
                rest += new
    if first == 1 and not rest.strip():
        raise Damaged(path, "it is empty")
    if rest.strip():
        yield first, rest.removeprefix(b"\xef\xbb\xbf") if first == 1 else rest


@dataclass
class _Notes:
    named: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        if len(self.named) < _NAMED:
            self.named.append(text)

    def text(self, count: int, what: str) -> list[str]:
        if not count:
            return []
        more = ", ..." if count > len(self.named) else ""
        return [f"{count:,} {what}, skipped: {', '.join(self.named)}{more}"]


# interactions ---------------------------------------------------------------------------------------------------


def _columns(path: Path, block: bytes) -> tuple[list[int], int]:
    """Where user, item and time are, and how many lines the header has."""
    line = block[: block.find(b"\n") + 1 or len(block)].decode(errors="replace").strip()
    fields = [field.strip() for field in next(csv.reader([line]), [])]
    names = [field.lower() for field in fields]
    places = {
        role: names.index(found[0])
        for role, known in _ROLES.items()
        if (found := [name for name in known if name in names])
    }
    if len(places) == len(_ROLES):
        return [places[role] for role in _ROLES], 1
    if len(fields) in (4, 5) and fields[3].isdigit():
        return [0, 1, 3], 0
    raise ValueError(
        f"{path}, line 1: neither a header with {', '.join(_PUBLISHED[:4])} nor such a row: {line[:200]!r}"
    )


def _without_lines(block: bytes, lines: int) -> bytes:
    return block[block.find(b"\n") + 1 :] if lines and b"\n" in block else b"" if lines else block


def _frame(path: Path, first: int, block: bytes, places: list[int]) -> "polars.DataFrame":
    """Columns user, item (text) and time (int64)."""
    import polars

    try:
        table = polars.read_csv(
            block,
            has_header=False,
            infer_schema=False,
            columns=sorted(places),
            raise_if_empty=False,
        )
    except (polars.exceptions.PolarsError, polars.exceptions.PanicException) as error:
        _refuse_first(path, first, block, places)
        raise Damaged(path, error) from error
    by_place = dict(zip(sorted(places), table.columns, strict=True))
    user, item, time = (table[by_place[place]] for place in places)
    frame = polars.DataFrame(
        {
            "user": user,
            "item": item,
            "time": time.str.strip_chars().cast(polars.Int64, strict=False),
        }
    )
    bad = frame.select(polars.any_horizontal(polars.all().is_null())).to_series()
    bad |= (frame["user"] == "") | (frame["item"] == "")
    if bad.any():
        _refuse_first(path, first, block, places)
        row = int(bad.arg_true()[0])
        raise ValueError(f"{path}, line {_line(first, block, row)}: no user, item or timestamp")
    return frame


def _refuse_first(path: Path, first: int, block: bytes, places: list[int]) -> None:
    """Raises a ValueError for the first row that is none; returns if a plain reader finds no fault."""
    for number, line in enumerate(io.BytesIO(block), start=first):
        try:
            text = line.decode().rstrip("\r\n")
            fields = next(csv.reader([text], strict=True), [])
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        if not fields:
            continue
        values = [fields[place] if place < len(fields) else "" for place in places]
        if not all(values) or not values[2].strip().lstrip("-").isdigit():
            raise ValueError(
                f"{path}, line {number}: not {', '.join(_PUBLISHED[:4])}: {text[:200]!r} "
                "(a file that ends here is cut off: fetch it again)"
            )


def _line(first: int, block: bytes, row: int) -> int:
    """The line of a row; blank lines are no rows."""
    full = (n for n, line in enumerate(io.BytesIO(block), start=first) if line.strip())
    return next(number for position, number in enumerate(full) if position == row)


def _rows(table: "polars.DataFrame", counts: dict[str, int], notes: list[str]) -> Rows:
    user, user_keys = codes(table["user"])
    item, item_keys = codes(table["item"])
    time = table["time"].to_numpy()
    del table
    rows = filters.order(user, time)
    user, item, time = user[rows], item[rows], time[rows]
    del rows
    first = np.unique(user.astype(np.int64) * len(item_keys) + item, return_index=True)[1]
    keep = np.zeros(len(user), dtype=bool)
    keep[first] = True
    counts = {**counts, "repeated_pairs_dropped": int(len(user) - keep.sum())}
    user, item, time = user[keep], item[keep], time[keep]
    # The authors meet users in the train file, then in valid, then in test: the short ones come last.
    number = np.bincount(user, minlength=len(user_keys))
    met = np.argsort(np.maximum(3 - number, 0), kind="stable")
    place = np.empty(len(met), dtype=np.int32)
    place[met] = np.arange(len(met), dtype=np.int32)
    if not np.array_equal(met, np.arange(len(met))):
        order = np.argsort(place[user], kind="stable")
        user, item, time = place[user][order], item[order], time[order]
        user_keys = user_keys.gather(met)
    return Rows(user, item, time, user_keys, item_keys, counts, notes)


def codes(values: "polars.Series") -> tuple[np.ndarray, "polars.Series"]:
    """int32 [n] codes and the distinct texts [k], in order of first appearance."""
    import polars

    distinct = values.unique(maintain_order=True)
    numbers = polars.DataFrame({"key": distinct}).with_row_index("code")
    joined = polars.DataFrame({"key": values}).join(
        numbers, on="key", how="left", maintain_order="left"
    )
    return joined["code"].cast(polars.Int32).to_numpy(), distinct


# items ----------------------------------------------------------------------------------------------------------


def _no_records() -> "polars.DataFrame":
    import polars

    text = polars.String
    return polars.DataFrame(schema={"item": text, "title": text, "description": text})


def _records(block: bytes) -> "polars.DataFrame | None":
    """Columns item, title and description; None when some line is no ordinary record."""
    import polars

    text = polars.String
    schema = {"parent_asin": text, "title": text, "description": polars.List(text)}
    try:
        table = polars.read_ndjson(io.BytesIO(block), schema=schema)
    except (polars.exceptions.PolarsError, polars.exceptions.PanicException):
        return None
    if not (table["parent_asin"] != "").fill_null(False).all():
        return None
    return table.select(
        polars.col("parent_asin").alias("item"),
        "title",
        polars.col("description").list.first().alias("description"),
    )


def _records_by_line(block: bytes) -> tuple["polars.DataFrame", list[int]]:
    """The usable records, and the positions of the lines that are none."""
    import polars

    found, broken = [], []
    for position, line in enumerate(io.BytesIO(block)):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            key = record["parent_asin"]
            if not isinstance(key, str) or not key:
                raise ValueError("no item")
            found.append((key, _text(record.get("title")), _text(record.get("description"))))
        except (ValueError, TypeError, KeyError, RecursionError):
            broken.append(position)
    columns = list(zip(*found, strict=True)) or [(), (), ()]
    names = ("item", "title", "description")
    series = [
        polars.Series(name, values, dtype=polars.String)
        for name, values in zip(names, columns, strict=True)
    ]
    return polars.DataFrame(series), broken


def _text(value: Any) -> str | None:
    """Text, or the first of a list of texts."""
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value).encode(errors="replace").decode()


def _one_line(texts: "polars.Series") -> "polars.Series":
    plain = texts.fill_null("").str.replace_all(r"\r\n|[\n\r\t\x00]", " ")
    import polars

    blank = plain.str.strip_chars() == ""
    return polars.select(polars.when(blank).then(polars.lit("")).otherwise(plain)).to_series()
