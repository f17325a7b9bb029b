"""Which published files a category needs, and where they are: the user's folder, the cache, or the network."""

import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from llmsrec_jax.data.amazon_reviews_2023 import categories, download
from llmsrec_jax.data.amazon_reviews_2023.checksums import Checksums

HOSTS = (  # the same files; the second one has them unpacked
    "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023",
    "https://huggingface.co/datasets/McAuley-Lab/Amazon-Reviews-2023/resolve/main",
)


@dataclass(frozen=True)
class Sources:
    """The files of one category: interactions in reading order, then the items' metadata."""

    interactions: tuple["Source", ...]
    metadata: "Source"

    @property
    def all(self) -> tuple["Source", ...]:
        return (*self.interactions, self.metadata)


@dataclass(frozen=True)
class Source:
    address: str  # URL, or file:// and the path; the name under which its checksum is kept
    path: Path
    sha256: str | None  # None = not known yet


def wanted(category: str) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Paths on a host, for interactions and for metadata; each a list of alternatives, the best first.

    The leave-last-out files hold the rows of the rating_only file in another order, and give the same result.
    """
    core = f"benchmark/{categories.core(category)}"
    rating_only = f"{core}/rating_only/{category}.csv"
    interactions: list[tuple[str, ...]] = [(f"{rating_only}.gz",), (rating_only,)]
    for folder in ("last_out", "last_out_w_his"):
        for packed in (".gz", ""):
            names = (f"{category}.{part}.csv{packed}" for part in ("train", "valid", "test"))
            interactions.append(tuple(f"{core}/{folder}/{name}" for name in names))
    metadata = f"raw/meta_categories/meta_{category}.jsonl"
    return interactions, [(f"{metadata}.gz",), (metadata,)]


class Finder:
    """Finds the files of one category."""

    def __init__(self, category: str, manual_dir: str, base_url: str, cache: Path):
        """Raises a ValueError for a base_url that is no web address."""
        if base_url and not base_url.startswith(("http://", "https://")):
            raise ValueError(f"data.base_url={base_url!r}: must begin with http:// or https://")
        self.category, self.cache = category, cache
        self.manual_dir = Path(manual_dir).expanduser() if manual_dir else None
        self.hosts = (base_url.rstrip("/"),) if base_url else HOSTS
        self.checksums = Checksums(cache)
        self.needs = wanted(category)
        self._sums: dict[Path, str] = {}  # of the user's files: they are read once for this

    def known(self) -> Sources | None:
        """Files whose content is known without the network: the user's own, and those with a recorded sum."""
        return self._both(lambda need: self._manual(need) or self._recorded(need))

    def fetch(self) -> Sources:
        """All files, on this machine, with the right checksums; downloads what is missing.

        Raises:
          ValueError: something is missing or wrong; the message says what to do.
        """
        found = [self._manual(need) or self._downloaded(need) for need in self.needs]
        missing = [need for need, sources in zip(self.needs, found, strict=True) if not sources]
        offers = self._offers(missing)
        brought = [sources or self._download(next(offers)) for sources in found]
        return Sources(brought[0], brought[1][0])

    def again(self) -> "Finder":
        """The same search, after another process may have changed the cache."""
        self.checksums = Checksums(self.cache)
        return self

    def record(self, sources: Sources) -> None:
        """Keeps the checksums of files that were read without a fault."""
        for source in sources.all:
            self.checksums.record(source.address, source.path, source.sha256 or "")

    def discard(self, path: Path) -> None:
        """Removes a damaged download, never a file of the user."""
        if path.is_relative_to(self.cache / "downloads"):
            path.unlink(missing_ok=True)

    def _both(self, find) -> Sources | None:
        interactions, metadata = (find(need) for need in self.needs)
        return Sources(interactions, metadata[0]) if interactions and metadata else None

    def _manual(self, need: list[tuple[str, ...]]) -> tuple[Source, ...] | None:
        """The user's own files, in the published folders or all in one folder."""
        if self.manual_dir is None:
            return None
        if not self.manual_dir.is_dir():
            raise ValueError(f"data.manual_dir={self.manual_dir}: no such folder")
        for names in need:
            for place in (lambda name: name, lambda name: name.rpartition("/")[2]):
                paths = [(self.manual_dir / place(name)).absolute() for name in names]
                if all(path.is_file() for path in paths):
                    return tuple(self._own(path) for path in paths)
        return None

    def _own(self, path: Path) -> Source:
        if path not in self._sums:
            self._sums[path] = download.sha256(path)
        return self._checked(f"file://{path}", path, self._sums[path])

    def _checked(self, address: str, path: Path, sha256: str) -> Source:
        return Source(address, path, self.checksums.check(address, path, sha256))

    def _recorded(self, need: list[tuple[str, ...]]) -> tuple[Source, ...] | None:
        for urls in self._urls(need):
            sums = [self.checksums.known(url) for url in urls]
            if all(sums):
                return tuple(
                    Source(url, self._cached(url), known)
                    for url, known in zip(urls, sums, strict=True)
                )
        return None

    def _downloaded(self, need: list[tuple[str, ...]]) -> tuple[Source, ...] | None:
        for urls in self._urls(need):
            if all(self._cached(url).is_file() for url in urls):
                return tuple(self._fetched(url, self._cached(url)) for url in urls)
        return None

    def _fetched(self, url: str, path: Path) -> Source:
        return self._checked(url, path, download.sha256(path))

    def _urls(self, need: list[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
        for host in self.hosts:
            for names in need:
                yield tuple(f"{host}/{name}" for name in names)

    def _cached(self, url: str) -> Path:
        parts = urlsplit(url)
        return self.cache / "downloads" / parts.netloc.replace(":", "_") / parts.path.lstrip("/")

    def _offers(self, missing: list[list[tuple[str, ...]]]) -> Iterator[list[download.Found]]:
        """For each need, the first alternative that some host has as a whole."""
        if not missing:
            return iter(())
        answers = self._ask(missing)
        offers = []
        for need in missing:
            found = (self._complete_offer(way, answers) for way in self._urls(need))
            offer = next(filter(None, found), None)
            if offer is None:
                raise download.Unreachable(self._out_of_reach(need, answers))
            offers.append(offer)
        size = sum(one.size or 0 for offer in offers for one in offer)
        download.require_space(self.cache, size)
        return iter(offers)

    def _ask(self, missing: list[list[tuple[str, ...]]]) -> dict[str, download.Found | str]:
        """Asks every host for the best alternatives, then those that answered at all for the rest."""
        best = [f"{host}/{name}" for host in self.hosts for need in missing for name in need[0]]
        answers = download.probe(best)
        if all(any(self._complete_offer(w, answers) for w in self._urls(n)) for n in missing):
            return answers
        alive = {
            host
            for host in self.hosts
            for url, answer in answers.items()
            if url.startswith(host) and not download.is_silent(answer)
        }
        rest = [url for need in missing for way in self._urls(need) for url in way]
        rest = [u for u in rest if u not in answers and u.startswith(tuple(alive) or "\0")]
        return answers | download.probe(rest)

    @staticmethod
    def _complete_offer(way: tuple[str, ...], answers: dict) -> list[download.Found] | None:
        found = [answer for url in way if isinstance(answer := answers.get(url), download.Found)]
        return found if len(found) == len(way) else None

    def _download(self, found: list[download.Found]) -> tuple[Source, ...]:
        sources = []
        for one in found:
            path = self._cached(one.url)
            download.fetch(one, path)
            try:
                sources.append(self._fetched(one.url, path))
            except ValueError:
                self.discard(path)
                raise
        return tuple(sources)

    def _out_of_reach(self, need: list[tuple[str, ...]], answers: dict) -> str:
        """What was tried, why it failed, and how to bring the files by hand."""
        tried = [(url, answers[url]) for way in self._urls(need) for url in way if url in answers]
        reasons = list(dict.fromkeys(f"{urlsplit(url).netloc}: {why}" for url, why in tried))
        folder = shlex.quote(str(self.manual_dir or "amazon_2023"))
        here = [self._manual(one) for one in self.needs]
        lines = [
            f"Amazon Reviews 2023, {self.category}: files are missing and no host has them "
            f"({'; '.join(reasons)}). On a machine with a network, fetch",
        ]
        fetches = []
        for position, (one, present) in enumerate(zip(self.needs, here, strict=True)):
            if present:
                continue
            for way in list(self._urls(one))[:1]:
                for url in way:
                    about = categories.about_bytes(self.category, position == 1, True)
                    lines.append(f"  {url}  (about {download.human(about)})")
                    fetches.append(f"curl -fL -C - -O {url}")
        lines += [
            "for instance with",
            f"  mkdir -p {folder} && cd {folder} && {' && '.join(fetches)}",
            "bring that folder here, and run",
            f"  {_this_command()} --config.data.manual_dir={folder}",
            "Plain files, the leave-last-out files and the published subfolders will do as well.",
        ]
        return "\n".join(lines)


def _this_command() -> str:
    given = [word for word in sys.argv[1:] if not word.startswith("--config.data.manual_dir=")]
    ours = any(word.startswith("--config") for word in given)
    return f"python -m llmsrec_jax.main {shlex.join(given if ours else ['--config=FILE.py'])}"
