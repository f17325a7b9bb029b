"""Two foreign layouts as plain TSV: RecBole's atomic files and MovieLens' `.dat`. Names, units and encodings follow from the layout."""

from typing import NamedTuple

RECBOLE, MOVIELENS = (".inter", ".item"), ".dat"
_ALIASES = {  # role -> names in published atomic files
    "user": ("user_id",),
    "item": ("item_id",),
    "time": ("timestamp",),
    "title": ("title", "movie_title", "item_name", "name"),
}
_PLACES = {
    "user": 0,
    "item": 1,
    "rating": 2,
    "time": 3,
}  # ratings.dat; movies.dat: item, title, genres


class Layout(NamedTuple):
    """A file as TSV with a header."""

    content: bytes
    names: dict[str, str]  # role -> column
    header_line: int  # its number in the file; 0 = the file has none
    unit: str  # of its timestamps: s, or magnitude (the file does not say); '' = as configured


def recbole(content: bytes, names: dict[str, str]) -> Layout:
    """`user_id:token` becomes `user_id`. A configured name that is not there gives way to the usual one."""
    header, end, rest = content.partition(b"\n")
    columns = [column.partition(":")[0] for column in header.decode(errors="replace").split("\t")]
    columns[-1] = columns[-1].rstrip("\r")
    found = {
        role: next((one for one in (name, *_ALIASES[role]) if one in columns), name)
        for role, name in names.items()
    }
    return Layout("\t".join(columns).encode() + end + rest, found, 1, "magnitude")


def movielens(content: bytes, names: dict[str, str]) -> Layout:
    """`1::1193::5::978300760` and `1::Toy Story (1995)::Animation|Comedy`; UTF-8 or, as in MovieLens 1M, Latin-1."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    header = "\t".join(_PLACES) if "user" in names else "item\ttitle\tgenres"
    body = text.replace("\t", " ").replace("::", "\t")
    return Layout(f"{header}\n{body}".encode(), {role: role for role in names}, 0, "s")
