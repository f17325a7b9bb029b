"""Your own files: every format gives the same data, and everything wrong is named by file and line or counted."""

import csv
import gzip
import io
import json
from datetime import UTC, datetime

import numpy as np
import polars
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsrec_jax import config
from llmsrec_jax.data import sources, tables

ROWS = [
    ("u1", "10", 1_400_000_000_000),
    ("u2", "ä b", 1_400_000_000_123),
    ("u1", "ä b", -86_400_000),
]
ITEMS = [("ä b", 'A "quoted", title'), ("10", "Plain"), ("7", "Never bought")]
NAMES = ("user", "item", "timestamp")


def write(path, rows, names):
    """The rows in the format of the file's extension."""
    kind = path.suffixes[0]
    if kind == ".parquet":
        columns = list(zip(*rows, strict=True)) or [()] * len(names)
        polars.DataFrame(dict(zip(names, columns, strict=True))).write_parquet(path)
        return path
    if kind == ".jsonl":
        text = "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
    elif kind == ".tsv":
        text = "".join("\t".join(map(str, row)) + "\n" for row in [names, *rows])
    else:
        buffer = io.StringIO()
        csv.writer(buffer).writerows([names, *rows])
        text = buffer.getvalue()
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def settings(folder, interactions="i.csv", items="", **columns) -> config.Data:
    cfg = config.Data(source="files")
    cfg.files = config.Files(
        str(folder / interactions), str(folder / items) if items else "", **columns
    )
    return cfg


def load(cfg: config.Data):
    """Rows by name, titles by name, and the report."""
    catalog, table, report = sources.load(cfg, seed=0)
    rows = [
        (str(table.user_keys[u]), str(catalog.keys[i]), int(t))
        for u, i, t in zip(table.user, table.item, table.time, strict=True)
    ]
    assert table.user.dtype == table.item.dtype == np.int32 and table.time.dtype == np.int64
    assert catalog.keys[0] == catalog.titles[0] == "" and not catalog.has_title[0]
    titles = dict(zip(catalog.keys[1:].tolist(), catalog.titles[1:], strict=True))
    return rows, titles, report


FORMATS = ["csv", "tsv", "jsonl", "csv.gz", "tsv.gz", "jsonl.gz", "parquet"]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_data(tmp_path, kind):
    write(tmp_path / f"i.{kind}", ROWS, NAMES)
    write(tmp_path / f"t.{kind}", ITEMS, ("item", "title"))
    rows, titles, report = load(settings(tmp_path, f"i.{kind}", f"t.{kind}"))
    assert rows == ROWS and titles == dict(ITEMS)
    assert report == {"duplicate_items": 0, "items_without_title": 0, "items_not_listed": 0}


@pytest.mark.parametrize("kind", FORMATS)
def test_columns_by_name_without_items(tmp_path, kind):
    rows = [("x", time, item, user) for user, item, time in ROWS]
    write(tmp_path / f"i.{kind}", rows, ("other", "when", "asin", "who"))
    names = {"user_column": "who", "item_column": "asin", "time_column": "when"}
    read, titles, report = load(settings(tmp_path, f"i.{kind}", **names))
    assert read == ROWS and set(titles.values()) == {"Empty title"} and report == {}


@pytest.mark.parametrize(
    "unit, texts",
    [
        ("s", ["1400000000", "1400000000.123", " -86400"]),
        ("us", ["1400000000000000", "1400000000123999", "-86400000000"]),
        ("ms", ["1400000000000", "1400000000123.7", "-8.64e7"]),
        ("iso", ["2014-05-13T16:53:20", "2014-05-13 18:53:20.123999+02:00", "1969-12-31"]),
        ("iso", ["2014-05-13T16:53:20Z", "20140513T165320.123Z", "1969-12-31T00:00:00+00:00"]),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_time_units(tmp_path, unit, texts, kind):
    rows = [(user, item, text) for (user, item, _), text in zip(ROWS, texts, strict=True)]
    write(tmp_path / f"i.{kind}", rows, NAMES)
    assert load(settings(tmp_path, f"i.{kind}", time_unit=unit))[0] == ROWS


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_typed_columns(tmp_path, kind):
    rows = [(5, 10, 1_400_000_000.5), (6, 7, 1.0)]
    write(tmp_path / f"i.{kind}", rows, NAMES)
    read = load(settings(tmp_path, f"i.{kind}", time_unit="s"))[0]
    assert read == [("5", "10", 1_400_000_000_500), ("6", "7", 1000)]


@pytest.mark.parametrize("unit", ["us", "ms", "ns"])
def test_parquet_datetimes_need_no_unit(tmp_path, unit):
    moments = [datetime.fromtimestamp(time / 1000, UTC) for _, _, time in ROWS]
    users, items, _ = zip(*ROWS, strict=True)
    naive = polars.Series([m.replace(tzinfo=None) for m in moments], dtype=polars.Datetime(unit))
    for stamps in (naive, naive.dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Seoul")):
        frame = polars.DataFrame({"user": users, "item": items, "timestamp": stamps})
        frame.write_parquet(tmp_path / "i.parquet")
        assert load(settings(tmp_path, "i.parquet"))[0] == ROWS


def test_byte_order_mark_crlf_and_blank_lines(tmp_path):
    text = "\ufeffuser,item,timestamp\r\n\r\nu1,10,5\r\n\r\nu2,7,6\r\n\r\n"
    for kind, content in (("csv", text), ("tsv", text.replace(",", "\t"))):
        (tmp_path / f"i.{kind}").write_bytes(content.encode())
        assert load(settings(tmp_path, f"i.{kind}"))[0] == [("u1", "10", 5), ("u2", "7", 6)]


ids = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from('",; \t\n'),
    min_size=1,
    max_size=6,
)


@given(st.lists(st.tuples(ids, ids, st.integers(0, 10**12)), min_size=1, max_size=8))
def test_any_text_survives_csv_and_jsonl(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("text")
    for kind in ("csv", "jsonl", "parquet"):
        write(folder / f"i.{kind}", rows, NAMES)
        assert load(settings(folder, f"i.{kind}"))[0] == rows


# What is wrong with a row: content, and the message -----------------------------------------------------------

HEAD = "user,item,timestamp\nu1,10,5\n"
BAD = [
    ("i.csv", HEAD + "u2,,6\n", "i.csv, line 3: no value in column 'item'"),
    ("i.csv", HEAD + "u2\n", "i.csv, line 3: no value in column 'item'"),
    ("i.csv", HEAD + "u2,7\n", "i.csv, line 3: no value in column 'timestamp'"),
    ("i.csv", HEAD + "\n\n,7,6\n", "i.csv, line 5: no value in column 'user'"),
    ("i.csv", HEAD + "u2,7,soon\n", "i.csv, line 3: 'soon' is not a timestamp in ms"),
    ("i.csv", HEAD + "u2,7,nan\n", "i.csv, line 3: 'nan' is not a timestamp in ms"),
    ("i.csv", HEAD + "u2,7,1e400\n", "i.csv, line 3: '1e400' is not a timestamp in ms"),
    (
        "i.csv",
        HEAD + "u2,7,14000000000000000\n",
        "line 3: timestamp .* outside the years 1900 to 2199",
    ),
    ("i.csv", HEAD + "u2,a, b,6\n", "i.csv, line 3: 4 fields, the header has 3"),
    ("i.csv", HEAD + '"u\n2",7,6\nu3,8,\n', "i.csv, line 5: no value in column 'timestamp'"),
    ("i.csv", HEAD + '"u\n2",7,soon\n', "i.csv, line 3: 'soon' is not a timestamp"),
    ("i.csv", HEAD + 'u2,"7,6\nu3,8,7\n', "i.csv, line 3: .*quote left open"),
    ("i.csv", HEAD.encode() + b"u2,\xff,6\n", "i.csv, line 3: not UTF-8"),
    ("i.csv", HEAD + "u2,7\0,6\n", "i.csv, line 3: a NUL character in column 'item'"),
    ("i.csv", HEAD + f"u2,{'x' * 600},6\n", "i.csv, line 3: an id of over 512 characters"),
    ("i.tsv", HEAD.replace(",", "\t") + "u2\t\t6\n", "i.tsv, line 3: no value in column 'item'"),
    ("i.tsv", HEAD.replace(",", "\t") + "u\t2\t7\t6\n", "i.tsv, line 3: 4 fields"),
    ("i.tsv", HEAD.replace(",", "\t").encode() + b"u2\t\xe4\t6\n", "i.tsv, line 3: not UTF-8"),
    ("i.csv.gz", HEAD + "u2,7,x\n", "i.csv.gz, line 3: 'x' is not a timestamp"),
    ("i.csv", "", "i.csv is empty"),
    ("i.csv", "user,item,timestamp\n", "i.csv has no rows"),
    ("i.csv", "user,asin,timestamp\n1,2,3\n", "no column 'item' .*; it has user, asin, timestamp"),
    ("i.csv", "User,item,timestamp\n1,2,3\n", "no column 'user' .*: did you mean User"),
]
GOOD_JSON = '{"user": "u1", "item": "10", "timestamp": 5}\n'
BAD += [
    (
        "i.jsonl",
        GOOD_JSON + '{"user": "u2", "item": null, "timestamp": 5}\n',
        "line 2: no value in .*item",
    ),
    ("i.jsonl", GOOD_JSON + '\n{"user": "u2", "item": "7"}\n', "line 3: no value in .*timestamp"),
    ("i.jsonl", GOOD_JSON + '{"user": "u2", "item"\n', "i.jsonl, line 2: not JSON"),
    ("i.jsonl", GOOD_JSON + "[1, 2, 3]\n", "i.jsonl, line 2: not a JSON object"),
    (
        "i.jsonl",
        GOOD_JSON + '{"user": ["u"], "item": 7, "timestamp": 5}\n',
        "line 2: 'user' is a list",
    ),
    (
        "i.jsonl",
        GOOD_JSON + '{"user": true, "item": 7, "timestamp": 5}\n',
        "line 2: 'user' is a bool",
    ),
    (
        "i.jsonl",
        GOOD_JSON + '{"user": 1, "item": 7, "timestamp": NaN}\n',
        "line 2: 'nan' is not a timestamp",
    ),
    ("i.jsonl", GOOD_JSON.encode() + b'{"user": "\xff"}\n', "i.jsonl, line 2: not UTF-8"),
    (
        "i.jsonl",
        GOOD_JSON + '{"user": "\\ud800", "item": 7, "timestamp": 5}\n',
        "line 2: 'user' has half of a surrogate pair",
    ),
    ("i.jsonl", GOOD_JSON.replace("item", "asin"), "no column 'item'"),
    ("i.jsonl", "\n\n", "i.jsonl is empty"),
    ("i.txt", HEAD, "i.txt: use .csv, .tsv, .jsonl"),
    ("i.parquet", HEAD, "i.parquet is truncated or damaged"),
    ("i.csv.gz", b"user,item", "i.csv.gz is truncated or damaged .*: fetch it again"),
]


@pytest.mark.parametrize("name, content, message", BAD)
def test_what_is_wrong_is_named(tmp_path, name, content, message):
    content = content.encode() if isinstance(content, str) else content
    packed = name.endswith(".gz") and content.startswith(b"user,item,")
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(ValueError, match=message):
        load(settings(tmp_path, name))


def test_a_truncated_gz_is_never_used(tmp_path):
    path = write(tmp_path / "i.csv.gz", ROWS * 2000, NAMES)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="i.csv.gz is truncated or damaged"):
        load(settings(tmp_path, "i.csv.gz"))


def test_parquet_rows_and_types_are_named(tmp_path):
    users, items, times = zip(*ROWS, strict=True)
    frame = polars.DataFrame({"user": users, "item": items, "timestamp": times})
    bad = frame.with_columns(timestamp=polars.Series([1, None, 3]))
    bad.write_parquet(tmp_path / "i.parquet")
    with pytest.raises(ValueError, match="i.parquet, row 2: no value in column 'timestamp'"):
        load(settings(tmp_path, "i.parquet"))
    frame.with_columns(user=polars.Series([1.5, 2.0, 3.0])).write_parquet(tmp_path / "i.parquet")
    with pytest.raises(
        ValueError, match="column 'user' is Float64; ids and titles are text or integers"
    ):
        load(settings(tmp_path, "i.parquet"))
    frame.drop("item").write_parquet(tmp_path / "i.parquet")
    with pytest.raises(ValueError, match="no column 'item' .*; it has user, timestamp"):
        load(settings(tmp_path, "i.parquet"))
    frame.head(0).write_parquet(tmp_path / "i.parquet")
    with pytest.raises(ValueError, match="i.parquet has no rows"):
        load(settings(tmp_path, "i.parquet"))


def test_missing_files_and_settings(tmp_path):
    write(tmp_path / "interactions.csv", ROWS, NAMES)
    with pytest.raises(ValueError, match="no such file: did you mean interactions.csv"):
        load(settings(tmp_path, "interaction.csv"))
    with pytest.raises(ValueError, match="data.files.items=.*t.csv: no such file"):
        load(settings(tmp_path, "interactions.csv", "t.csv"))
    with pytest.raises(ValueError, match="data.files.interactions is empty"):
        load(config.Data(source="files"))
    with pytest.raises(ValueError, match="data.category='' is no category"):
        sources.load(config.Data(source="amazon"), 0)
    with pytest.raises(ValueError, match="data.files.time_unit='days': use s, ms, us or iso"):
        load(settings(tmp_path, "interactions.csv", time_unit="days"))


# Items ------------------------------------------------------------------------------------------------------------


def test_titles_and_what_is_counted(tmp_path):
    write(tmp_path / "i.csv", [("u", item, 1) for item in ("a", "b", "c", "d", "e")], NAMES)
    items = [
        {"item": "a", "title": "Two\nlines\tand &amp; a tab"},
        {"item": "b", "title": None},
        {"item": "a", "title": "a second time"},
        {"item": "c", "title": "  "},
        {"item": "d"},
        {"item": "z", "title": 300},
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in items))
    cfg = settings(tmp_path, "i.csv", "t.jsonl")
    cfg.missing_title = "No name"
    catalog, _, report = sources.load(cfg, 0)
    assert catalog.keys.tolist() == ["", "a", "b", "c", "d", "z", "e"]
    assert catalog.titles[1:] == ["Two lines and &amp; a tab", *["No name"] * 3, "300", "No name"]
    assert catalog.has_title.tolist() == [False, True, False, False, False, True, False]
    assert report == {"duplicate_items": 1, "items_without_title": 3, "items_not_listed": 1}


def test_a_csv_title_over_several_lines_becomes_one(tmp_path):
    write(tmp_path / "i.csv", ROWS, NAMES)
    (tmp_path / "t.csv").write_bytes(b'item,title\n10,"a\r\nb"\n7,"c\nd"\n')
    assert load(settings(tmp_path, "i.csv", "t.csv"))[1] == {
        "10": "a b",
        "7": "c d",
        "ä b": "Empty title",
    }
    (tmp_path / "t.csv").write_bytes(b'item,title\n10,"a\r\nb"\n\n7,"c\nd"\n')  # read row by row
    assert load(settings(tmp_path, "i.csv", "t.csv"))[1] == {
        "10": "a b",
        "7": "c d",
        "ä b": "Empty title",
    }


def test_quotes_are_ordinary_in_tsv(tmp_path):
    write(tmp_path / "i.csv", ROWS, NAMES)
    (tmp_path / "t.tsv").write_text('item\ttitle\n10\t24" Arm\n7\t"Quoted" start\n')
    titles = load(settings(tmp_path, "i.csv", "t.tsv"))[1]
    assert (titles["10"], titles["7"]) == ('24" Arm', '"Quoted" start')


def test_items_file_problems_name_the_items_file(tmp_path):
    write(tmp_path / "i.csv", ROWS, NAMES)
    (tmp_path / "t.csv").write_text("item,name\n10,x\n")
    with pytest.raises(
        ValueError, match=r"t.csv has no column 'title' \(data.files.title_column\)"
    ):
        load(settings(tmp_path, "i.csv", "t.csv"))
    (tmp_path / "t.csv").write_text("item,title\n10,x\n,y\n")
    with pytest.raises(ValueError, match="t.csv, line 3: no value in column 'item'"):
        load(settings(tmp_path, "i.csv", "t.csv"))


def test_the_careful_reader_agrees_with_the_fast_one(tmp_path):
    """Blank lines force the careful one."""
    write(tmp_path / "i.csv", ROWS * 50, NAMES)
    fast = tables.read(str(tmp_path / "i.csv"), "x", {"user": "user", "item": "item"})
    content = (tmp_path / "i.csv").read_bytes()
    (tmp_path / "j.csv").write_bytes(content + b"\r\n\r\n")
    careful = tables.read(str(tmp_path / "j.csv"), "x", {"user": "user", "item": "item"})
    assert {k: v.to_list() for k, v in fast.columns.items()} == {
        k: v.to_list() for k, v in careful.columns.items()
    }
    assert fast.line(7) == careful.line(7) == "line 9"
