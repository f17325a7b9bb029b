"""Where interactions come from: one function per source, each returning a catalogue, a raw table and what it counted."""

from collections.abc import Callable
from typing import Any

import numpy as np

from llmsrec_jax import config
from llmsrec_jax.data import shop, tables
from llmsrec_jax.data.interactions import Catalog, Interactions

Report = dict[str, Any]  # what reading counted; the names are those of the data card


def load(cfg: config.Data, seed: int) -> tuple[Catalog, Interactions, Report]:
    """The data of cfg.source. Raises ValueError naming the file and line of what cannot be used."""
    if cfg.source not in SOURCES:
        raise ValueError(f"data.source={cfg.source!r}: use one of {', '.join(SOURCES)}")
    return SOURCES[cfg.source](cfg, seed)


def _load_shop(cfg: config.Data, seed: int) -> tuple[Catalog, Interactions, Report]:
    made = shop.generate(cfg.shop, seed)
    return made.catalog, made.interactions, {}


def _load_amazon(cfg: config.Data, seed: int) -> tuple[Catalog, Interactions, Report]:
    """Amazon Reviews 2023: found or fetched, prepared once per machine."""
    from llmsrec_jax.data.amazon_reviews_2023 import prepared

    return prepared.load(cfg)


def _load_files(cfg: config.Data, seed: int) -> tuple[Catalog, Interactions, Report]:
    """Your own files. Ids are text. Items are numbered in the order of the items file, then of first appearance.

    The first row of an item counts. An item that has interactions but no row, or no title, gets cfg.missing_title (D16). Titles
    stay as they are, except that a line break or tab becomes a space.
    """
    files = cfg.files
    if not files.interactions:
        raise ValueError(
            "data.files.interactions is empty: give the path of your interactions file"
        )
    table = tables.read(
        files.interactions,
        "data.files.interactions",
        {"user": files.user_column, "item": files.item_column, "time": files.time_column},
    )
    user, user_keys = _codes(table.ids("user"))
    item, item_keys = _codes(table.ids("item"))
    time = table.times("time", files.time_unit)
    report: Report = {}
    listed_keys, listed_titles = _items(files, report) if files.items else (item_keys[:0], [])
    row_of = {key: row for row, key in enumerate(listed_keys.tolist(), start=1)}
    unlisted = [key for key in item_keys.tolist() if key not in row_of]
    row_of |= {key: row for row, key in enumerate(unlisted, start=1 + len(listed_keys))}
    titles = [*listed_titles, *([""] * len(unlisted))]
    has_title = np.asarray([False, *(bool(title) for title in titles)])
    if files.items:
        report["items_without_title"] = int(np.sum(~has_title[1 : 1 + len(listed_keys)]))
        report["items_not_listed"] = len(unlisted)
    catalog = Catalog(
        np.asarray(["", *listed_keys.tolist(), *unlisted], dtype=str),
        ["", *(title or cfg.missing_title for title in titles)],
        has_title,
    )
    rows = np.asarray([row_of[key] for key in item_keys.tolist()], dtype=np.int32)
    return catalog, Interactions(user, rows[item], time, user_keys), report


def _items(files: config.Files, report: Report) -> tuple[np.ndarray, list[str]]:
    """Distinct keys in file order and their titles ('' where there is none)."""
    names = {"item": files.item_column, "title": files.title_column}
    table = tables.read(files.items, "data.files.items", names)
    code, keys = _codes(table.ids("item"))
    first = np.unique(code, return_index=True)[1]
    report["duplicate_items"] = len(code) - len(keys)
    titles = table.columns["title"].fill_null("").to_list()
    return keys, [_one_line(titles[row]) for row in first]


def _one_line(title: str) -> str:
    title = title.replace("\r\n", " ").replace("\n", " ").replace("\r", " ").replace("\t", " ")
    return title if title.strip() else ""


def _codes(values) -> tuple[np.ndarray, np.ndarray]:
    """int32 [n] codes and the distinct texts [k], in order of first appearance."""
    import polars

    distinct = values.unique(maintain_order=True)
    numbers = polars.DataFrame({"key": distinct}).with_row_index("code")
    joined = polars.DataFrame({"key": values}).join(
        numbers, on="key", how="left", maintain_order="left"
    )
    return joined["code"].to_numpy().astype(np.int32), np.asarray(distinct.to_list(), dtype=str)


SOURCES: dict[str, Callable[[config.Data, int], tuple[Catalog, Interactions, Report]]] = {
    "amazon": _load_amazon,
    "files": _load_files,
    "shop": _load_shop,
}
