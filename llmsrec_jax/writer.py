"""What a run says while it works: metrics.jsonl for programs, the console for people. Knows no jax."""

import contextlib
import datetime
import io
import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

LINE_EVERY_S = 10.0  # between progress lines where the console is not a terminal
SILENT_S = 2.0  # what took less is not worth a line
SMOOTHING = 0.9  # of the shown loss: weight of the past


class Writer:
    """metrics.jsonl in the work folder, and the console."""

    def __init__(self, workdir: Path, console: TextIO | None = None, silent: bool = False):
        """`console` shows progress; standard error unless given. Results go to standard output.

        `silent`: writes and shows nothing, for all processes but the first.
        """
        self.path, self.silent, self._hushed = Path(workdir) / "metrics.jsonl", silent, False
        self.console = io.StringIO() if silent else console or sys.stderr

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: object) -> None:
        self.console.flush()

    def log(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line; numbers that are not finite become null."""
        if self.silent:
            return
        line = {"stage": stage, "step": step, **{k: _plain(v) for k, v in values.items()}}
        line["time"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def resume(self, stage: str, key: str, step: int) -> None:
        """Drops the lines of `stage` and configuration `key` after `step`, about to be written again, and a torn last line."""
        if self.silent:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            line
            for line in read_log(self.path)
            if (line.get("stage"), line.get("key")) != (stage, key) or line.get("step", 0) <= step
        ]
        temporary = self.path.with_name(f".{self.path.name}.new")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
        os.replace(temporary, self.path)

    def say(self, text: str) -> None:
        """A paragraph for people."""
        if not self.silent and not self._hushed:
            _write(text)
            sys.stdout.flush()

    @contextlib.contextmanager
    def hushed(self) -> Iterator[None]:
        """Without paragraphs: bars and metrics.jsonl go on."""
        self._hushed = True
        try:
            yield
        finally:
            self._hushed = False

    def progress(
        self,
        title: str,
        total: int,
        done: int = 0,
        batch: int = 0,
        unit: str = "steps",
        compiles: bool = False,
    ) -> "Progress":
        """A bar over `total` units, `done` of them earlier. With `batch` (users per unit) it shows users per second.

        `compiles`: the first unit waits for a program to be compiled, which is said if it takes long.
        """
        return Progress(title, total, done, batch, unit, self.console, compiles)


def _plain(value: Any) -> Any:
    """A JSON value of a Python, numpy or jax scalar."""
    if isinstance(value, str | bool | int | None):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a torn last one is left out.

    Raises:
      ValueError: another line is damaged.
    """
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    parsed = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is torn, or empty
        try:
            parsed.append(json.loads(line))
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number} is damaged ({error}): delete that line"
            ) from error
    return parsed


class Progress:
    """A bar with loss, throughput and time left: tqdm on a terminal, a plain line now and then elsewhere."""

    def __init__(
        self,
        title: str,
        total: int,
        done: int,
        batch: int,
        unit: str,
        console: TextIO,
        compiles: bool = False,
    ):
        self.title, self.total, self.done, self.batch, self.unit = title, total, done, batch, unit
        self.console, self.loss = console, math.nan
        self._first, self._start, self._shown = done, time.monotonic(), time.monotonic()
        self._timed: tuple[int, float] | None = None  # after the first update, which compiles
        self._bar = None
        if console.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                desc=title,
                total=total,
                initial=done,
                unit=unit.removesuffix("s"),
                file=console,
                dynamic_ncols=True,
                leave=False,
            )

        self._patience: threading.Timer | None = None
        if compiles and done < total:
            self._patience = threading.Timer(SILENT_S, self._compiling)
            self._patience.daemon = True

    def __enter__(self) -> "Progress":
        if self._patience is not None:
            self._patience.start()
        return self

    def _compiling(self) -> None:
        """After some silence, in a thread of its own: the first unit is not done yet."""
        if self._timed is None:
            _write(f"{self.title}: compiling, once for each shape; then it runs", self.console)
            self.console.flush()

    def __exit__(self, *error: object) -> None:
        if self._patience is not None:
            self._patience.cancel()
        if self._bar is not None:
            self._bar.close()
        if self.done > self._first and time.monotonic() - self._start > SILENT_S:
            self._line()

    def update(self, count: int = 1, loss: float | None = None) -> None:
        """`count` more units are done; `loss` is smoothed for display."""
        self.done += count
        if loss is not None:
            past = loss if math.isnan(self.loss) else self.loss
            self.loss = SMOOTHING * past + (1 - SMOOTHING) * loss
        if self._timed is None and self._patience is not None:
            self._patience.cancel()
        if self._bar is not None:
            if self._timed is None:  # the time left does not count what was compiled meanwhile
                self._bar.unpause()
            if not math.isnan(self.loss):
                self._bar.set_postfix_str(f"loss {self.loss:.4f}{self._users()}", refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._shown > LINE_EVERY_S:
            self._line()
        if self._timed is None:
            self._timed = self.done, time.monotonic()

    def _rate(self) -> float:
        done, start = self._timed or (self._first, self._start)
        if done == self.done:  # a single update
            done, start = self._first, self._start
        return (self.done - done) / max(time.monotonic() - start, 1e-9)

    def _users(self) -> str:
        return f", {_short(self._rate() * self.batch)} users/s" if self.batch else ""

    def _line(self) -> None:
        self._shown, rate = time.monotonic(), self._rate()
        left = datetime.timedelta(seconds=round((self.total - self.done) / max(rate, 1e-9)))
        spent = datetime.timedelta(seconds=round(time.monotonic() - self._start))
        loss = "" if math.isnan(self.loss) else f", loss {self.loss:.4f}"
        speed = self._users() or f", {_short(rate)} {self.unit}/s"
        known = self._timed is not None and self.done < self.total
        when = f"{left} left" if known else f"{spent} spent"
        share = f"{self.done}/{self.total} {self.unit}"
        _write(f"{self.title}: {share}{loss}{speed}, {when}", self.console)
        self.console.flush()


def _write(text: str, console: TextIO | None = None) -> None:
    """A line between the bars, if any."""
    from tqdm import tqdm

    tqdm.write(text, file=console)


def _short(number: float) -> str:
    return f"{number / 1000:.1f}k" if number >= 1000 else f"{number:.3g}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned text: columns of numbers to the right, of words to the left; an empty cell is shown as -."""
    cells = [[cell or "-" for cell in row] for row in rows]
    words = [any(c[0].isalpha() for c in column) for column in zip(*cells, strict=True)]
    words += [True] * (len(columns) - len(words))
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if word else cell.rjust(width)
            for cell, width, word in zip(row, widths, words, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(columns), line(["-" * width for width in widths]), *map(line, cells)])
