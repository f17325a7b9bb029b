"""Tables from the user's own files, as text columns; a bad row is named by its line.

CSV, TSV, JSONL, RecBole's and MovieLens' layouts (each optionally .gz) and Parquet.

polars reads CSV, TSV and Parquet. Where it refuses a file or hides a line number, a plain reader goes over the file again:
slowly, but it knows the line. TSV has no quoting (a quote is a character like any other), CSV has RFC 4180 quoting.
"""

import csv
import difflib
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from llmsrec_jax.data import layouts

if TYPE_CHECKING:
    import polars

_KINDS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    **dict.fromkeys(layouts.RECBOLE, "recbole"),
    layouts.MOVIELENS: "movielens",
}
_TO_MS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "s": lambda number: np.rint(number * 1000),
    "ms": np.floor,
    "us": lambda number: np.floor(number / 1000),
}
_FIRST_MS, _LAST_MS = -2_208_988_800_000, 7_258_118_400_000  # the years 1900 to 2199
_LONGEST_ID = 512  # characters; longer is a broken file, not an id


@dataclass(frozen=True, eq=False)
class Table:
    """Some columns of a file by role; text, null where absent, except that Parquet timestamps are datetimes."""

    path: Path
    columns: dict[str, "polars.Series"]  # role -> values [n]
    names: dict[str, str]  # role -> the file's column name
    line: Callable[[int], str]  # row -> 'line 17'
    unit: str = ""  # of the timestamps, where the layout of the file decides

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def refuse(self, row: int, why: str) -> NoReturn:
        """Raises the ValueError for a bad row."""
        raise ValueError(f"{self.path}, {self.line(int(row))}: {why}")

    def ids(self, role: str) -> "polars.Series":
        """Text [n], no null and no empty string."""
        values = self.columns[role]
        self._refuse_first(
            values.is_null() | (values == ""), f"no value in column {self.names[role]!r}"
        )
        nul = values.str.contains("\0", literal=True)
        self._refuse_first(nul, f"a NUL character in column {self.names[role]!r}")
        too_long = values.str.len_chars() > _LONGEST_ID
        self._refuse_first(
            too_long, f"an id of over {_LONGEST_ID} characters in {self.names[role]!r}"
        )
        return values

    def times(self, role: str, unit: str) -> np.ndarray:
        """int64 [n] ms since epoch, UTC. unit: s | ms | us | iso (a date or date-time; without an offset it is UTC)."""
        import polars

        unit = self.unit or unit
        if unit == "magnitude":
            unit = _unit_by_magnitude(self.columns[role])
        if unit != "iso" and unit not in _TO_MS:
            raise ValueError(f"data.files.time_unit={unit!r}: use {', '.join(_TO_MS)} or iso")
        values = self.columns[role]
        if values.dtype == polars.String:
            self._refuse_first(
                values.is_null() | (values.str.strip_chars() == ""),
                f"no value in column {self.names[role]!r}",
            )
            ms = _iso_ms(values) if unit == "iso" else _number_ms(values, unit)
        else:
            self._refuse_first(values.is_null(), f"no value in column {self.names[role]!r}")
            ms = values.dt.epoch("ms").to_numpy().astype(np.float64)
        bad = np.flatnonzero(np.isnan(ms))
        if len(bad):
            self.refuse(
                bad[0],
                f"{values[int(bad[0])]!r} is not a timestamp in {unit} (data.files.time_unit)",
            )
        outside = np.flatnonzero((ms < _FIRST_MS) | (ms >= _LAST_MS))
        if len(outside):
            text = values[int(outside[0])]
            self.refuse(
                outside[0],
                f"timestamp {text!r} in {unit} is outside the years 1900 to 2199: is data.files.time_unit right?",
            )
        return ms.astype(np.int64)

    def _refuse_first(self, bad: "polars.Series", why: str) -> None:
        rows = bad.fill_null(False).arg_true()
        if len(rows):
            self.refuse(rows[0], why)


def read(path: str, field: str, names: dict[str, str]) -> Table:
    """The columns `names` (role -> column) of a file; `field` is the config field to name in messages.

    Raises ValueError: no such file, unknown extension, missing column, truncated or malformed content.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        near = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
        raise ValueError(f"{field}={path}: no such file{_did_you_mean(file.name, near)}")
    packed = file.suffix.lower() == ".gz"
    suffix = (file.with_suffix("") if packed else file).suffix.lower()
    kind = _KINDS.get(suffix)
    if kind is None or (packed and kind == "parquet"):
        raise ValueError(
            f"{field}={path}: use .csv, .tsv, .jsonl, .inter, .item, .dat (each also with .gz) or .parquet"
        )
    if kind == "parquet":
        return _read_parquet(file, names)
    content = _content(file, packed)
    if not content.strip():
        raise ValueError(f"{file} is empty")
    if kind == "jsonl":
        return _from_records(file, names, _json_records(file, content, names))
    if kind in ("csv", "tsv"):
        return _read_delimited(file, content, names, "," if kind == "csv" else "\t")
    layout = (layouts.recbole if kind == "recbole" else layouts.movielens)(content, names)
    read = _read_delimited(file, layout.content, layout.names, "\t", layout.header_line)
    return replace(read, unit=layout.unit)


def _content(file: Path, packed: bool) -> bytes:
    try:
        content = gzip.decompress(file.read_bytes()) if packed else file.read_bytes()
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{file} is truncated or damaged ({error}): fetch it again") from error
    return content.removeprefix(b"\xef\xbb\xbf")


def _read_delimited(
    file: Path, content: bytes, names: dict[str, str], delimiter: str, header_line: int = 1
) -> Table:
    import polars

    quote = '"' if delimiter == "," else None
    try:
        frame = polars.read_csv(
            content, separator=delimiter, quote_char=quote, infer_schema=False, raise_if_empty=True
        )
    except (polars.exceptions.PolarsError, polars.exceptions.PanicException, ValueError):
        frame = None
    if frame is not None:
        _check_columns(file, frame.columns, names)
        blank = frame.select(polars.all_horizontal(polars.all().is_null()).any()).item()
        if len(frame) and not blank:
            columns = {role: frame[name] for role, name in names.items()}
            lines: list[int] = []

            def line(row: int) -> str:
                if not lines:
                    lines.extend(
                        number for number, _ in _rows(file, content, delimiter, names, header_line)
                    )
                return f"line {lines[row]}"

            return Table(file, columns, names, line)
    return _from_records(file, names, _rows(file, content, delimiter, names, header_line))


def _rows(
    file: Path, content: bytes, delimiter: str, names: dict[str, str], header_line: int
) -> Iterator[tuple[int, tuple]]:
    """(line number, values in the order of `names`) of every row that is not blank, checked one by one."""
    records = _split(file, content, delimiter, header_line)
    _, header = next(records)
    _check_columns(file, header, names)
    places = [header.index(name) for name in names.values()]
    for number, fields in records:
        if len(fields) > len(header):
            raise ValueError(
                f"{file}, line {number}: {len(fields)} fields, the header has {len(header)}: "
                "quote fields that contain the delimiter"
            )
        yield number, tuple(fields[place] if place < len(fields) else None for place in places)


def _split(
    file: Path, content: bytes, delimiter: str, header_line: int
) -> Iterator[tuple[int, list[str]]]:
    if delimiter == "\t":
        for number, line in _lines(file, content, header_line):
            yield number, line.split("\t")
        return
    text = (line for _, line in _lines(file, content, header_line, keep_blank=True))
    reader = csv.reader((line + "\n" for line in text), strict=True)
    first = 1
    try:
        for fields in reader:
            if fields:
                yield first, fields
            first = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{file}, line {first}: {error} (is a quote left open?)") from None


def _lines(
    file: Path, content: bytes, first: int = 1, keep_blank: bool = False
) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(io.BytesIO(content), start=first):
        try:
            text = line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}, line {number}: not UTF-8 ({error.reason})") from None
        if text or keep_blank:
            yield number, text


def _json_records(file: Path, content: bytes, names: dict[str, str]) -> Iterator[tuple[int, tuple]]:
    found: set[str] = set()
    for number, line in _lines(file, content):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: not JSON ({error})") from None
        if not isinstance(record, dict):
            raise ValueError(f"{file}, line {number}: not a JSON object")
        found |= record.keys()
        where = f"{file}, line {number}"
        yield number, tuple(_json_text(where, name, record.get(name)) for name in names.values())
    _check_columns(file, sorted(found), names)


def _json_text(where: str, name: str, value: Any) -> str | None:
    if isinstance(value, str) and not _is_unicode(value):
        raise ValueError(f"{where}: {name!r} has half of a surrogate pair: not Unicode text")
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where}: {name!r} is a {type(value).__name__}, not text or a number")
    return str(value)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _from_records(file: Path, names: dict[str, str], records: Iterator[tuple[int, tuple]]) -> Table:
    import polars

    lines, values = [], []
    for number, fields in records:
        lines.append(number)
        values.append(fields)
    if not values:
        raise ValueError(f"{file} has no rows")
    columns = zip(*values, strict=True)
    series = {
        role: polars.Series(role, list(column), dtype=polars.String)
        for role, column in zip(names, columns, strict=True)
    }
    return Table(file, series, names, lambda row: f"line {lines[row]}")


def _read_parquet(file: Path, names: dict[str, str]) -> Table:
    import polars

    try:
        found = list(polars.read_parquet_schema(file))
        _check_columns(file, found, names)
        frame = polars.read_parquet(file, columns=list(dict.fromkeys(names.values())))
    except (polars.exceptions.PolarsError, polars.exceptions.PanicException, OSError) as error:
        raise ValueError(f"{file} is truncated or damaged ({error}): fetch it again") from error
    if not len(frame):
        raise ValueError(f"{file} has no rows")
    columns = {}
    for role, name in names.items():
        values, dtype = frame[name], frame[name].dtype
        if role == "time" and dtype in (polars.Date, polars.Datetime):
            columns[role] = values
        elif dtype.is_integer() or (role == "time" and dtype.is_float()):
            columns[role] = values.cast(polars.String)
        elif dtype in (polars.String, polars.Categorical, polars.Enum, polars.Null):
            columns[role] = values.cast(polars.String)
        else:
            raise ValueError(
                f"{file}: column {name!r} is {dtype}; ids and titles are text or integers"
            )
    return Table(file, columns, names, lambda row: f"row {row + 1}")


def _check_columns(file: Path, found: list[str], names: dict[str, str]) -> None:
    for role, name in names.items():
        if name not in found:
            raise ValueError(
                f"{file} has no column {name!r} (data.files.{role}_column); it has {', '.join(found)}"
                f"{_did_you_mean(name, found)}"
            )


def _did_you_mean(word: str, choices: list[str]) -> str:
    near = difflib.get_close_matches(word, choices, n=1)
    return f": did you mean {near[0]}?" if near else ""


def _number_ms(values: "polars.Series", unit: str) -> np.ndarray:
    """float64 [n] ms, nan where not a finite number. Exact: every legal ms value is below 2^53."""
    import polars

    text = values.str.strip_chars()
    number = text.cast(polars.Float64, strict=False).to_numpy().astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        ms = _TO_MS[unit](number)
    return np.where(np.isfinite(ms), ms, np.nan)


def _unit_by_magnitude(values: "polars.Series") -> str:
    """The unit in which the largest timestamp is of this age; milliseconds where none is."""
    import polars

    largest = values.cast(polars.Float64, strict=False).max()
    largest = float(largest) if isinstance(largest, int | float) else 0.0
    sizes = {"s": 1e9, "ms": 1e12, "us": 1e15}
    return next((unit for unit, size in sizes.items() if size / 10 < largest < size * 10), "ms")


def _iso_ms(values: "polars.Series") -> np.ndarray:
    """float64 [n] ms, nan where not ISO 8601."""
    distinct = values.unique()
    known = {text: _one_iso_ms(text) for text in distinct}
    return np.asarray([known[text] for text in values], dtype=np.float64)


def _one_iso_ms(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return float("nan")
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return float(since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000)
