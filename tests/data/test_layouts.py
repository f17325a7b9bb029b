"""RecBole and MovieLens files as they are published."""

import gzip

import pytest

from llmsrec_jax import config
from llmsrec_jax.data import sources

RATINGS = "1::1193::5::978300760\n1::661::3::978302109\n2::1193::4::978298413\n"
MOVIES = "661::Caf\xe9, The: a Story (1996)::Drama\n1193::One Flew\tOver (1975)::Drama|Comedy\n"
INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t1193\t5\t978300760\n1\t661\t3\t978302109\n2\t1193\t4\t978298413.0\n"
ITEM = 'item_id:token\tmovie_title:token_seq\tgenre:token_seq\n661\tCaf\xe9, "The"\tDrama\n1193\tOne Flew\tDrama Comedy\n'
EXPECTED = [
    ("1", "1193", 978_300_760_000),
    ("1", "661", 978_302_109_000),
    ("2", "1193", 978_298_413_000),
]


def load(folder, interactions, items, **columns):
    files = config.Files(
        str(folder / interactions), str(folder / items) if items else "", **columns
    )
    catalog, table, _ = sources.load(config.Data(source="files", files=files), seed=0)
    rows = [
        (str(table.user_keys[u]), str(catalog.keys[i]), int(t))
        for u, i, t in zip(table.user, table.item, table.time, strict=True)
    ]
    return rows, catalog.titles[1:]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_movielens(tmp_path, encoding, packed):
    for name, text in (("ratings.dat", RATINGS), ("movies.dat", MOVIES)):
        content = text.encode(encoding)
        (tmp_path / (name + packed)).write_bytes(gzip.compress(content) if packed else content)
    rows, titles = load(tmp_path, "ratings.dat" + packed, "movies.dat" + packed)
    assert rows == EXPECTED
    assert titles == ["Caf\xe9, The: a Story (1996)", "One Flew Over (1975)"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_recbole(tmp_path, end):
    (tmp_path / "ml.inter").write_bytes(INTER.replace("\n", end).encode())
    (tmp_path / "ml.item").write_bytes(ITEM.replace("\n", end).encode())
    rows, titles = load(tmp_path, "ml.inter", "ml.item")
    assert rows == EXPECTED and titles == ['Caf\xe9, "The"', "One Flew"]


def test_recbole_without_types_and_with_other_columns(tmp_path):
    header = "who:token\titem_id\ttimestamp"
    (tmp_path / "x.inter").write_text(f"{header}\na\tb\t978300760000\n")
    rows, _ = load(tmp_path, "x.inter", "", user_column="who")
    assert rows == [("a", "b", 978_300_760_000)]


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("978300760", 978_300_760_000),
        ("978300760000", 978_300_760_000),
        ("978300760000000", 978_300_760_000),
        ("5", 5),
    ],
)
def test_recbole_does_not_say_its_unit(tmp_path, text, ms):
    (tmp_path / "x.inter").write_text(
        f"user_id:token\titem_id:token\ttimestamp:float\na\tb\t{text}\n"
    )
    assert load(tmp_path, "x.inter", "")[0] == [("a", "b", ms)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.dat", "1::2::3::978300760\n1::2::3::x\n", "r.dat, line 2: 'x' is not a timestamp"),
        ("r.dat", "1::2::3::978300760\n1::2::3\n", "r.dat, line 2: no value in column 'time'"),
        ("r.dat", "1::2::3::978300760\n1::2::3::4::5\n", "r.dat, line 2: 5 fields"),
        ("r.inter", INTER + "3\t\t1\t978300760\n", "r.inter, line 5: no value in column 'item_id'"),
        ("r.inter", "a:token\tb:token\n1\t2\n", "r.inter has no column 'user' .* it has a, b"),
        ("r.inter", "", "r.inter is empty"),
    ],
)
def test_bad_rows_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, name, "")
