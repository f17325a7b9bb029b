"""The TFDS builder: `<category>_users` has one record per user, `<category>_items` one per item. No TensorFlow.

A record's position is its user's or item's number; `items` of a user are positions in the items config. Written as
ArrayRecord, in file order, so that any record is read at once and users stand as the authors meet them (D34).
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from llmsrec_jax.data.amazon_reviews_2023 import categories, files, parse

KINDS = ("users", "items")


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
    category: str = ""
    kind: str = "users"  # users | items


@dataclasses.dataclass(frozen=True, eq=False)
class Tables:
    """Both files of a category, read."""

    rows: parse.Rows
    items: parse.Items

    @classmethod
    def read(cls, sources: files.Sources) -> "Tables":
        rows = parse.interactions([source.path for source in sources.interactions])
        return cls(rows, parse.items(sources.metadata.path, rows.item_keys))

    @property
    def report(self) -> dict[str, Any]:
        """What reading counted, and remarks."""
        counts = {**self.rows.counts, **self.items.counts}
        return {**counts, "notes": [*self.rows.notes, *self.items.notes]}


class Builder(tfds.core.GeneratorBasedBuilder):
    """Amazon Reviews 2023, 5-core, of one category."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        Config(name=config_name(category, kind), category=category, kind=kind)
        for config_name in [lambda category, kind: f"{category.lower()}_{kind}"]
        for category in categories.SIZES
        for kind in KINDS
    ]

    def __init__(self, *, tables: Tables | None = None, **options: Any):
        """`tables`: what was read already; otherwise the files are found or downloaded when the data are prepared."""
        self._tables = tables
        super().__init__(**{"file_format": "array_record", **options})

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        assert isinstance(config, Config)
        numbers = lambda dtype: tfds.features.Tensor(shape=(None,), dtype=dtype)
        features = {
            "users": {
                "user_id": tfds.features.Text(),
                "items": numbers(np.int32),
                "timestamps": numbers(np.int64),
            },
            "items": {
                "parent_asin": tfds.features.Text(),
                "title": tfds.features.Text(),
                "description": tfds.features.Text(),
            },
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{config.category} of Amazon Reviews 2023: one record per {config.kind[:-1]}.",
            features=tfds.features.FeaturesDict(features[config.kind]),
            homepage="https://amazon-reviews-2023.github.io/",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        config = self.builder_config
        assert isinstance(config, Config)
        if self._tables is None:
            manual = getattr(dl_manager, "_manual_dir", None)
            cache = Path(dl_manager.download_dir)
            sources = files.Finder(config.category, str(manual or ""), "", cache).fetch()
            self._tables = Tables.read(sources)
        return {config.kind: self._generate_examples(config.kind)}

    def _generate_examples(self, kind: str) -> Iterator[tuple[int, dict[str, Any]]]:
        assert self._tables is not None
        rows, items = self._tables.rows, self._tables.items
        if kind == "items":
            columns = (rows.item_keys, items.titles, items.descriptions)
            for number, (key, title, text) in _bar(
                zip(*columns, strict=True), kind, len(columns[0])
            ):
                yield number, {"parent_asin": key, "title": title, "description": text}
            return
        ends = np.cumsum(np.bincount(rows.user, minlength=len(rows.user_keys))).tolist()
        start = 0
        for number, (key, end) in _bar(zip(rows.user_keys, ends, strict=True), kind, len(ends)):
            span = slice(start, end)
            yield number, {"user_id": key, "items": rows.item[span], "timestamps": rows.time[span]}
            start = end


def _bar(values: Iterator[Any], title: str, total: int) -> Iterator[tuple[int, Any]]:
    from tqdm import tqdm

    return enumerate(tqdm(values, desc=title, total=total, disable=None))
