"""Published files in every form they come in give the same arrays; a bad one is named."""

import gzip
import json

import numpy as np
import polars
import pytest

from llmsrec_jax.data.amazon_reviews_2023 import parse
from tests.data.amazon_reviews_2023 import made

KEYS = polars.Series([f"B{item:09d}" for item in range(40)])


def read(*paths):
    """Rows as text, in order."""
    found = parse.interactions(list(paths))
    assert found.user.dtype == found.item.dtype == np.int32 and found.time.dtype == np.int64
    users, items = found.user_keys.to_list(), found.item_keys.to_list()
    triples = zip(found.user, found.item, found.time.tolist(), strict=True)
    return [(users[u], items[i], t) for u, i, t in triples], found


def plain(rows):
    return [(user, item, time) for user, item, _, time in rows]


FORMS = {
    "published": {},
    "without header": {"header": ""},
    "CRLF": {"end": "\r\n"},
    "CRLF without header": {"end": "\r\n", "header": ""},
    "quoted": {"quote": '"'},
    "byte order mark": {"header": "\ufeffuser_id,parent_asin,rating,timestamp"},
    "other names": {"header": "reviewerID,asin,rating,unixReviewTime"},
    "capitals and spaces": {"header": "User_ID, Parent_ASIN, Rating, Timestamp"},
    "quoted header": {"header": '"user_id","parent_asin","rating","timestamp"', "quote": '"'},
}


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(tmp_path, rows, form, packed):
    path = made.put(tmp_path / f"x.csv{packed}", made.csv_text(rows, **FORMS[form]))
    assert read(path)[0] == plain(rows)


def test_columns_in_another_order(tmp_path, rows):
    turned = [(time, "history text", item, user) for user, item, _, time in rows]
    path = made.put(
        tmp_path / "x.csv", made.csv_text(turned, "timestamp,history,parent_asin,user_id")
    )
    assert read(path)[0] == plain(rows)


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_leave_last_out_files_give_the_same(tmp_path, rows, packed):
    rows = [*rows[:-2], *[("AEshort", row[1], 1.0, row[3]) for row in rows[:2]], *rows[-2:]]
    whole = made.put(tmp_path / "x.csv", made.csv_text(rows))
    paths = [
        made.put(tmp_path / f"x.{part}.csv{packed}", made.csv_text(own))
        for part, own in made.last_out(rows).items()
    ]
    (one, first), (three, second) = read(whole), read(*paths)
    assert one == three and first.user_keys.to_list() == second.user_keys.to_list()
    assert first.user_keys[-1] == "AEshort"  # met in the valid file only


def test_small_blocks_change_nothing(tmp_path, rows, monkeypatch):
    path = made.put(tmp_path / "x.csv.gz", made.csv_text(rows))
    meta = made.put(tmp_path / "m.jsonl.gz", made.jsonl(made.metadata(40)))
    whole, items = read(path)[0], parse.items(meta, KEYS)
    monkeypatch.setattr(parse, "_BLOCK", 100)
    assert read(path)[0] == whole
    small = parse.items(meta, KEYS)
    assert small.titles.to_list() == items.titles.to_list() and small.counts == items.counts


def test_shuffled_and_repeated_rows(tmp_path, rows):
    again = (*rows[5][:3], rows[5][3] + 1)  # the same pair later
    mixed = [rows[n] for n in np.random.default_rng(0).permutation(len(rows))]
    path = made.put(tmp_path / "x.csv", made.csv_text([*mixed, rows[0], again, rows[9]]))
    found, report = read(path)
    assert sorted(found) == sorted(plain(rows))
    assert report.counts["repeated_pairs_dropped"] == 3
    assert all(a[2] <= b[2] for a, b in zip(found, found[1:], strict=False) if a[0] == b[0])


def test_impossible_timestamps_are_dropped_and_named(tmp_path, rows):
    wrong = [("AEx", "B1", 1.0, 0), ("AEx", "B2", 1.0, 99_999_999_999_999), ("AEx", "B3", 1.0, -5)]
    path = made.put(tmp_path / "x.csv", made.csv_text([wrong[0], *rows, *wrong[1:]]))
    found, report = read(path)
    assert found == plain(rows) and report.counts["impossible_timestamps_dropped"] == 3
    last = len(rows) + 3
    assert report.notes == [
        "3 interactions with an impossible timestamp (zero or far future), skipped: "
        f"x.csv, line 2, x.csv, line {last}, x.csv, line {last + 1}"
    ]


def test_seconds_are_not_milliseconds(tmp_path, rows):
    path = made.put(tmp_path / "x.csv", made.csv_text([(*r[:3], r[3] // 1000) for r in rows]))
    with pytest.raises(ValueError, match="x.csv, line 2: .* they must be milliseconds since 1970"):
        parse.interactions([path])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("AE1,B1,5.0", "line 4: not user_id, parent_asin, rating, timestamp: 'AE1,B1,5.0'"),
        ("AE1,B1,5.0,abc", "line 4: not user_id"),
        (",B1,5.0,1000000000000", "line 4: not user_id"),
        ("AE1,,5.0,1000000000000", "line 4: not user_id"),
        ('AE1,"B1,5.0,1000000000000', "line 4: "),
        ("<html>", "line 4: not user_id"),
    ],
)
def test_a_bad_row_is_named(tmp_path, rows, line, message):
    text = made.csv_text(rows[:2]) + line + "\n" + made.csv_text(rows[2:4], header="")
    with pytest.raises(ValueError, match=message):
        parse.interactions([made.put(tmp_path / "x.csv", text)])


def test_not_utf8(tmp_path, rows):
    content = made.csv_text(rows[:2]).encode() + b"AE\xff,B1,5.0,1000000000000\n"
    with pytest.raises(ValueError, match="line 4: .*utf-8"):
        parse.interactions([made.put(tmp_path / "x.csv", content)])


@pytest.mark.parametrize("text", ["", "\n\n", "user_id,parent_asin,rating,timestamp\n"])
def test_empty(tmp_path, text):
    with pytest.raises(ValueError, match="is empty|has no rows|line 1: neither"):
        parse.interactions([made.put(tmp_path / "x.csv", text)])


@pytest.mark.parametrize("text", ["<!DOCTYPE html>\n<p>404\n", "a,b,c\n1,2,3\n", "PK\x03\x04"])
def test_something_else(tmp_path, text):
    with pytest.raises(ValueError, match="x.csv, line 1: neither a header with user_id, parent_a"):
        parse.interactions([made.put(tmp_path / "x.csv", text)])


@pytest.mark.parametrize("cut", [-1, -8, -9, 200, 12, 0])
def test_a_truncated_archive_is_never_used(tmp_path, rows, cut):
    whole = gzip.compress(made.csv_text(rows).encode())
    path = tmp_path / "x.csv.gz"
    path.write_bytes(whole[:cut])
    with pytest.raises(parse.Damaged, match="x.csv.gz is truncated or damaged .* fetch it again"):
        parse.interactions([path])


def test_a_flipped_bit_is_seen(tmp_path, rows):
    content = bytearray(gzip.compress(made.csv_text(rows).encode()))
    content[len(content) // 2] ^= 4
    path = tmp_path / "x.csv.gz"
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="x.csv.gz"):
        parse.interactions([path])


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_truncated_plain_file_loses_no_row_silently(tmp_path, rows, cut):
    """Cut anywhere in the last line: refused, or the row dropped as impossible and counted; or just the line's end is gone."""
    text = made.csv_text(rows)
    path = made.put(tmp_path / "x.csv", text[:-cut])
    last = text.splitlines()[-1]
    if cut == 1:
        assert read(path)[0] == plain(rows)
    elif cut - 1 >= len(last):
        pass  # whole lines are gone: only a checksum can know
    elif cut - 1 < len(str(rows[-1][3])):
        found, report = read(path)
        assert report.counts["impossible_timestamps_dropped"] == 1 and report.notes
    else:
        with pytest.raises(ValueError, match=f"line {len(rows) + 1}: .*cut off: fetch it again"):
            parse.interactions([path])


# metadata -------------------------------------------------------------------------------------------------------


def test_titles_and_descriptions(tmp_path):
    records = made.metadata(40)
    found = parse.items(made.put(tmp_path / "m.jsonl.gz", made.jsonl(records)), KEYS)
    for record, title, text in zip(records, found.titles, found.descriptions, strict=True):
        assert title == (record["title"] or "").strip()
        assert text == (record["description"] or [""])[0]
    assert found.counts == {
        "items_without_title": 3,
        "items_not_listed": 0,
        "duplicate_items": 0,
        "broken_lines": 0,
    }
    assert found.notes == []


def test_the_last_record_of_an_item_counts(tmp_path):
    records = [*made.metadata(3), {"parent_asin": "B000000001", "title": "Renewed"}]
    found = parse.items(made.put(tmp_path / "m.jsonl", made.jsonl(records)), KEYS[:3])
    assert found.titles[1] == "Renewed" and found.descriptions[1] == ""
    assert found.counts["duplicate_items"] == 1


def test_items_without_metadata(tmp_path):
    path = made.put(tmp_path / "m.jsonl", made.jsonl(made.metadata(3)))
    found = parse.items(path, polars.Series(["BX", *KEYS[:3]]))
    assert found.titles[0] == "" and found.titles[1] != ""
    assert found.counts["items_not_listed"] == 1 and found.counts["items_without_title"] == 0


def test_metadata_of_another_category(tmp_path):
    path = made.put(tmp_path / "m.jsonl", made.jsonl(made.metadata(3)))
    with pytest.raises(ValueError, match="none of the 1 items .* another category"):
        parse.items(path, polars.Series(["BX"]))


def test_unusual_records(tmp_path):
    unusual = {
        "description is a text": '{"parent_asin": "B000000000", "title": "t0", "description": "d"}',
        "title is a number": '{"parent_asin": "B000000001", "title": 1984, "description": [null]}',
        "NaN": '{"parent_asin": "B000000002", "title": "t2", "price": NaN}',
        "object": '{"parent_asin": "B000000003", "title": "t3", "description": {"a": 1}}',
        "two lines": '{"parent_asin": "B000000004", "title": "a\\nb\\tc\\r\\nd"}',
        "no title": '{"parent_asin": "B000000005"}',
    }
    path = made.put(tmp_path / "m.jsonl", "\r\n\n".join([*unusual.values(), ""]))
    found = parse.items(path, KEYS[:6])
    assert found.titles.to_list() == ["t0", "1984", "t2", "t3", "a b c d", ""]
    assert found.descriptions.to_list() == ["d", "", "", "", "", ""]
    assert found.counts["broken_lines"] == 0 and found.counts["items_without_title"] == 1


@pytest.mark.parametrize(
    "line",
    [
        '{"parent_asin": "B000000007", "title": "cut',
        '{"title": "no item"}',
        '{"parent_asin": null, "title": "x"}',
        '{"parent_asin": "", "title": "x"}',
        "[1, 2]",
        "null",
        "<html>",
        '{"parent_asin": "B000000007" "title": "x"}',
    ],
)
def test_broken_lines_are_counted_and_named(tmp_path, line):
    good = made.jsonl(made.metadata(6)).splitlines()
    path = made.put(tmp_path / "m.jsonl.gz", "\n".join([*good[:3], line, *good[3:], line]))
    found = parse.items(path, KEYS[:6])
    assert found.counts["broken_lines"] == 2 and found.counts["items_not_listed"] == 0
    assert found.notes == ["2 lines of m.jsonl.gz that are no item, skipped: line 4, line 8"]


def test_a_byte_that_is_no_text(tmp_path):
    content = made.jsonl(made.metadata(6)).encode() + b'{"parent_asin": "B\xff"}\n'
    found = parse.items(made.put(tmp_path / "m.jsonl", content), KEYS[:6])
    assert found.counts["broken_lines"] == 1


def test_half_a_surrogate_is_no_title_character(tmp_path):
    record = {"parent_asin": "B000000000", "title": "x \ud83d y"}
    path = made.put(tmp_path / "m.jsonl", json.dumps(record) + "\n")
    title = parse.items(path, KEYS[:1]).titles[0]
    assert title.startswith("x ") and title.endswith(" y") and title.encode()


def test_a_truncated_archive_of_metadata(tmp_path):
    whole = gzip.compress(made.jsonl(made.metadata(40)).encode())
    path = tmp_path / "m.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(parse.Damaged, match="m.jsonl.gz is truncated or damaged"):
        parse.items(path, KEYS)
