"""A category, prepared once per machine and read back: what `data.source='amazon'` loads.

The cache holds downloads, checksums, and prepared data in a folder named by the content of the files they came from. One
process prepares; others wait for it. A dataset appears whole or not at all, so a killed process leaves nothing that counts.
"""

import array
import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from llmsrec_jax import config
from llmsrec_jax.data import storage
from llmsrec_jax.data.amazon_reviews_2023 import categories, download, files, parse
from llmsrec_jax.data.interactions import Catalog, Interactions, offsets_of

FORMAT = 1  # of what is prepared; a new number prepares again
_READ = 4096  # records read at once
_FIELD = {"items": "int64_list", "timestamps": "int64_list"} | dict.fromkeys(
    ("user_id", "parent_asin", "title", "description"), "bytes_list"
)
_WAIT_S = 0.5


def load(cfg: config.Data) -> tuple[Catalog, Interactions, dict[str, Any]]:
    """Catalogue, interactions and what was counted, of cfg.category.

    Raises:
      ValueError: files are missing, wrong or damaged, or the cache cannot be used; the message says what to do.
    """
    category, cache = categories.resolve(cfg.category), cache_folder(cfg.cache_dir)
    finder = files.Finder(category, cfg.manual_dir, cfg.base_url, cache)
    known = finder.known()
    folder = _folder(cache, known) if known else None
    if folder is None or not _finished(folder):
        with _writing(cache), _lock(cache):
            folder = _prepare(category, finder.again(), cache)
    return _read(category, folder, cfg.missing_title)


def cache_folder(given: str) -> Path:
    """data.cache_dir, or the user's cache folder."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = Path(given).expanduser() if given else home / "llmsrec_jax" / "amazon_reviews_2023"
    return folder.absolute()


def _folder(cache: Path, sources: files.Sources) -> Path | None:
    """Where the data of these files are, once prepared."""
    sums = [source.sha256 for source in sources.all]
    if not all(sums):
        return None
    text = " ".join([str(FORMAT), *(known or "" for known in sums)])
    return cache / "prepared" / hashlib.sha256(text.encode()).hexdigest()[:16]


def _finished(folder: Path) -> bool:
    return (folder / "report.json").is_file()  # written last


def _prepare(category: str, finder: files.Finder, cache: Path) -> Path:
    sources = finder.known()
    folder = _folder(cache, sources) if sources else None
    if folder and _finished(folder):
        return folder  # by another process, while this one waited
    sources = finder.fetch()
    folder = _folder(cache, sources)
    assert folder is not None, "fetched files have checksums"
    if not _finished(folder):
        for other in folder.parent.glob("*"):
            if not _finished(other):
                shutil.rmtree(other)  # of a process that was stopped
        _build(category, finder, sources, folder)
    finder.record(sources)
    return folder


def _build(category: str, finder: files.Finder, sources: files.Sources, folder: Path) -> None:
    from llmsrec_jax.data.amazon_reviews_2023 import amazon_reviews_2023_dataset_builder as builder

    _say(f"reading {category}: {', '.join(source.path.name for source in sources.all)}")
    try:
        tables = builder.Tables.read(sources)
    except parse.Damaged as error:
        finder.discard(error.path)
        raise
    rows = tables.rows
    need = 14 * len(rows.item) + 120 * len(rows.user_keys) + 2000 * len(rows.item_keys)
    download.require_space(folder, need)
    _say(f"writing {len(rows.user_keys):,} users and {len(rows.item_keys):,} items to {folder}")
    try:
        for kind in builder.KINDS:
            name = f"{category.lower()}_{kind}"
            made = builder.Builder(tables=tables, config=name, data_dir=folder)
            with _quiet():
                made.download_and_prepare()
        storage.write_text(folder / "report.json", json.dumps(tables.report))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _read(category: str, folder: Path, missing: str) -> tuple[Catalog, Interactions, dict]:
    titles, keys = [""], [""]
    for record in _records(folder, category, "items"):
        keys.append(record["parent_asin"][0].decode())
        titles.append(record["title"][0].decode())
    has_title = np.asarray([bool(title) for title in titles])
    catalog = Catalog(
        np.asarray(keys, dtype=str), ["", *(title or missing for title in titles[1:])], has_title
    )
    user_keys, counts = [], []
    numbers, moments = array.array("i"), array.array("q")
    for record in _records(folder, category, "users"):
        user_keys.append(record["user_id"][0].decode())
        counts.append(len(record["items"]))
        numbers.extend(record["items"])
        moments.extend(record["timestamps"])
    lengths = np.asarray(counts, dtype=np.int64)
    user = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    item = np.frombuffer(numbers, dtype=np.int32) + np.int32(1)  # row 0 is the pad
    time = np.frombuffer(moments, dtype=np.int64)
    report = json.loads((folder / "report.json").read_text())
    report["users_with_one_timestamp"] = _one_timestamp(time, lengths)
    if category in categories.TABLE_10:
        report["table_10"] = list(categories.TABLE_10[category])
    return catalog, Interactions(user, item, time, np.asarray(user_keys, dtype=str)), report


def _one_timestamp(time: np.ndarray, lengths: np.ndarray) -> int:
    """Users with several interactions, all at the same moment: their order says nothing."""
    starts = offsets_of(lengths)[:-1]
    same = np.maximum.reduceat(time, starts) == np.minimum.reduceat(time, starts)
    return int(np.sum(same & (lengths > 1)))


def _records(folder: Path, category: str, kind: str) -> Iterator[dict[str, Any]]:
    """The records in order: feature -> its values, as protocol buffers hold them."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.proto import tf_example_pb2

    from llmsrec_jax.data.amazon_reviews_2023 import amazon_reviews_2023_dataset_builder as builder

    made = builder.Builder(config=f"{category.lower()}_{kind}", data_dir=folder)
    # Bytes, and not the decoded features: the protocol buffer is an order of magnitude faster.
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    source = cast(Any, made).as_data_source(kind, deserialize_method=raw)
    proto = cast(Any, tf_example_pb2)  # its classes are made at import
    for start in range(0, len(source), _READ):
        for content in source.__getitems__(list(range(start, min(start + _READ, len(source))))):
            feature = proto.Example.FromString(content).features.feature
            yield {name: getattr(feature[name], _FIELD[name]).value for name in feature}


@contextlib.contextmanager
def _lock(cache: Path) -> Iterator[None]:
    """One process at a time downloads and prepares; the kernel releases the lock when its process ends, however it ends."""
    with open(cache / ".lock", "a") as file:
        waiting = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    _say(f"waiting for another process that prepares data in {cache}")
                waiting = True
                time.sleep(_WAIT_S)
        yield


@contextlib.contextmanager
def _writing(cache: Path) -> Iterator[None]:
    """Errors of the disk, said with what to do about them."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        yield
    except Exception as error:
        if _is_full(error):
            raise ValueError(download.full(cache, None)) from error
        if isinstance(error, OSError) and error.errno in (
            errno.EROFS,
            errno.EACCES,
            errno.EPERM,
            errno.ENOTDIR,
            errno.EEXIST,
        ):
            raise ValueError(
                f"cannot write to {cache} ({error.strerror}): set --config.data.cache_dir=DIR to a "
                "folder that can be written, or to one where this category is prepared already"
            ) from error
        raise


def _is_full(error: BaseException) -> bool:
    """Whether the disk had no room. Libraries wrap the system's error, or only quote it (ArrayRecord does)."""
    if isinstance(error, ValueError):
        return False  # says what it is
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, "errno", None) == errno.ENOSPC:
            return True
        if os.strerror(errno.ENOSPC) in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the banners and bars of TFDS; the bar over the records is this package's."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
