"""SHA-256 sums of source files: recorded when a file was read to its end for the first time, enforced ever after."""

from pathlib import Path

from llmsrec_jax.data import storage

_NAME = "checksums.tsv"


class Checksums:
    """`<cache>/checksums.tsv`: one line of address, bytes and SHA-256 per file."""

    def __init__(self, cache: Path):
        self.path = cache / _NAME
        self._known: dict[str, tuple[int, str]] = {}
        if self.path.exists():
            for number, line in enumerate(self.path.read_text().splitlines(), start=1):
                try:
                    address, size, sha256 = line.split("\t")
                    self._known[address] = int(size), sha256
                except ValueError:
                    raise ValueError(
                        f"{self.path}, line {number}: not address, bytes and SHA-256 with tabs "
                        "between: delete the line"
                    ) from None

    def known(self, address: str) -> str | None:
        """The recorded sum."""
        return self._known[address][1] if address in self._known else None

    def check(self, address: str, path: Path, found: str) -> str:
        """`found`, the sum of `path`, which must be the recorded one if there is one.

        Raises:
          ValueError: it differs.
        """
        expected = self.known(address)
        if expected not in (None, found):
            raise ValueError(
                f"{path}: wrong checksum: SHA-256 is {found}, but {address} was {expected} when it "
                f"was first used. Fetch it again; or, if it has changed on purpose, delete its line "
                f"in {self.path}"
            )
        return found

    def record(self, address: str, path: Path, sha256: str) -> None:
        """Keeps the sum of a file that was read without a fault."""
        if address in self._known:
            return
        self._known[address] = path.stat().st_size, sha256
        lines = [f"{a}\t{size}\t{known}\n" for a, (size, known) in sorted(self._known.items())]
        storage.write_text(self.path, "".join(lines))
