"""Files over HTTP: one probe decides within seconds, an interrupted transfer resumes, a file appears whole or not at all."""

import errno
import hashlib
import http.client
import json
import os
import shutil
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmsrec_jax.data import storage

PROBE_S = 5.0  # seconds until a host that says nothing counts as out of reach
STALL_S = 30.0  # seconds without a byte before a transfer is taken up again
PAUSES_S = (1.0, 2.0, 4.0)  # seconds between attempts that bring nothing
_BLOCK = 1 << 20
_SPARE = 16 << 20  # bytes that stay free


class Unreachable(ValueError):
    """No host answered, or none has the file."""


@dataclass(frozen=True)
class Found:
    """What a host says about a file."""

    url: str
    size: int | None  # bytes; None when the host does not say
    tag: str  # changes when the file changes; '' when the host does not say


def probe(urls: Sequence[str], timeout_s: float = PROBE_S) -> dict[str, Found | str]:
    """What every URL's host answers to a HEAD request, or why it is of no use; at once, and within `timeout_s`."""
    answers: dict[str, Found | str] = {url: "no answer" for url in urls}
    late = threading.Event()

    def ask(url: str) -> None:
        answer = _head(url, timeout_s)
        if not late.is_set():
            answers[url] = answer

    threads = [threading.Thread(target=ask, args=(url,), daemon=True) for url in urls]
    for thread in threads:
        thread.start()
    until = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(until - time.monotonic(), 0))
    late.set()
    return answers


def is_silent(answer: Found | str) -> bool:
    """Whether there was no answer of a web server at all."""
    return isinstance(answer, str) and not answer.startswith("HTTP ")


def _head(url: str, timeout_s: float) -> Found | str:
    try:
        try:
            request = urllib.request.Request(url, method="HEAD", headers=_HEADERS)
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                return _found(url, response.headers)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code not in _NO_HEAD:
                raise
            first_byte = urllib.request.Request(url, headers={**_HEADERS, "Range": "bytes=0-0"})
            with urllib.request.urlopen(first_byte, timeout=timeout_s) as response:
                return _found(url, response.headers)
    except urllib.error.HTTPError as error:
        error.close()
        return f"HTTP {error.code} {error.reason}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__


_NO_HEAD = (403, 405, 501)  # of a host that may know the file, but not the question
_HEADERS = {"User-Agent": "llmsrec_jax", "Accept-Encoding": "identity"}


def _found(url: str, headers: Any) -> Found:
    whole = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length", "")
    size = int(whole) if whole.isdigit() else None
    return Found(url, size, headers.get("ETag") or headers.get("Last-Modified") or "")


def fetch(found: Found, path: Path) -> None:
    """Downloads to `path`, by way of `path`.part, which a later call continues where this one stopped.

    Raises:
      Unreachable: the host stopped answering; what came so far is kept.
      ValueError: the disk is full (what came so far is removed).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, note = Path(f"{path}.part"), Path(f"{path}.part.json")
    if not _continues(found, note):
        part.unlink(missing_ok=True)
    storage.write_text(note, json.dumps(asdict(found)))
    _say(f"downloading {found.url} ({human(found.size)})")
    pauses = iter(PAUSES_S)
    while not _complete(part, found):
        before = part.stat().st_size if part.exists() else 0
        try:
            _transfer(found, part)
            if found.size is None:
                break  # ended as the host meant it to
        except OSError as error:
            if error.errno == errno.ENOSPC:
                part.unlink(missing_ok=True)
                note.unlink(missing_ok=True)
                raise ValueError(full(path.parent, found.size)) from error
            reason = error
        except http.client.HTTPException as error:
            reason = error
        else:
            reason = "the connection closed early"
        after = part.stat().st_size if part.exists() else 0
        pauses = iter(PAUSES_S) if after > before else pauses
        pause = next(pauses, None)
        if not _complete(part, found):
            if pause is None:
                raise Unreachable(
                    f"{found.url}: {reason}; {human(after)} of {human(found.size)} are here: "
                    "the same command goes on from there"
                )
            time.sleep(pause)
    os.replace(part, path)
    note.unlink(missing_ok=True)


def _continues(found: Found, note: Path) -> bool:
    """Whether the bytes that are here belong to the same version of the same file."""
    try:
        known = json.loads(note.read_text())
    except (OSError, ValueError):
        return False
    return bool(found.tag or found.size) and known == asdict(found)


def _complete(part: Path, found: Found) -> bool:
    return part.exists() and found.size is not None and part.stat().st_size == found.size


def _transfer(found: Found, part: Path) -> None:
    """One request: the rest of the file, or all of it where the host knows no ranges."""
    start = part.stat().st_size if part.exists() else 0
    if found.size is None or start > found.size:
        start = 0
    headers = dict(_HEADERS)
    if start:
        headers["Range"] = f"bytes={start}-"
        if found.tag:
            headers["If-Range"] = found.tag
    request = urllib.request.Request(found.url, headers=headers)
    with urllib.request.urlopen(request, timeout=STALL_S) as response:
        resumed = response.status == 206 and _starts_at(response.headers, start)
        missing = response.length  # None where the host does not say
        with open(part, "ab" if resumed else "wb") as file, _bar(found, start * resumed) as bar:
            while block := response.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
                missing = None if missing is None else missing - len(block)
            file.flush()
            os.fsync(file.fileno())
    if missing:
        raise ConnectionError("the connection closed early")


def _starts_at(headers: Any, start: int) -> bool:
    return str(headers.get("Content-Range", "")).startswith(f"bytes {start}-")


def _bar(found: Found, start: int) -> Any:
    from tqdm import tqdm

    name = found.url.rpartition("/")[2]
    return tqdm(total=found.size, initial=start, desc=name, unit="B", unit_scale=True, disable=None)


def sha256(path: Path) -> str:
    """Hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def human(size: int | None) -> str:
    """A size for a person."""
    if size is None:
        return "size unknown"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.{1 if size < 10 * scale else 0}f} {unit}"
    return f"{size} bytes"


def require_space(folder: Path, size: int) -> None:
    """Raises a ValueError unless the disk of `folder` has `size` bytes and a little more."""
    while not folder.exists():
        folder = folder.parent
    if shutil.disk_usage(folder).free < size + _SPARE:
        raise ValueError(full(folder, size))


def full(folder: Path, size: int | None) -> str:
    """The message for a disk without room for `size` bytes."""
    need = f" ({human(size)} needed)" if size else ""
    return (
        f"no space left in {folder}{need}: free some, or set "
        "--config.data.cache_dir=DIR to a folder on a larger disk"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
