"""Made files in the exact published formats, and a host that serves them."""

import gzip
import json
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

CATEGORY = "Industrial_and_Scientific"
FIRST_MS = 1_000_000_000_000
Row = tuple[str, str, float, int]  # user, item, rating, ms


def users_rows(users: int, items: int, seed: int = 0) -> list[Row]:
    """Rows as in rating_only: by user, chronological with ties, no item twice."""
    rng = np.random.default_rng(seed)
    names = [f"AE{number:026X}" for number in rng.permutation(users)]
    rows = []
    for name in names:
        bought = rng.choice(items, size=min(5 + rng.poisson(4), items), replace=False)
        times = np.sort(FIRST_MS + rng.integers(0, 10**9, len(bought)) // 10**6 * 10**6)
        for item, moment in zip(bought, times, strict=True):
            rows.append((name, f"B{item:09d}", float(rng.integers(1, 6)), int(moment)))
    return rows


def metadata(items: int, text: int = 200) -> list[dict]:
    """Records as in meta_*.jsonl: some without a title or description; key order and nesting as published."""
    found = []
    for item in range(items):
        title = {3: None, 4: "", 5: "   "}.get(item, f'Item {item} "of", several; parts é')
        found.append(
            {
                "main_category": "Industrial & Scientific",
                "title": title,
                "average_rating": 4.5,
                "rating_number": 10 + item,
                "features": [f"feature {n} " + "x" * (text // 4) for n in range(2)],
                "description": [f"About {item}.", "y" * text] if item % 3 else [],
                "price": None if item % 2 else 12.5,
                "images": [{"thumb": "https://a/b.jpg", "large": None, "variant": "MAIN"}],
                "videos": [],
                "store": "Shop",
                "categories": ["Industrial & Scientific", "Tools"],
                "details": {"Brand": "Shop", "Date First Available": "May 1, 2012"},
                "parent_asin": f"B{item:09d}",
                "bought_together": None,
            }
        )
    return found


def csv_text(rows, header="user_id,parent_asin,rating,timestamp", end="\n", quote="") -> str:
    lines = [header] if header else []
    lines += [",".join(f"{quote}{value}{quote}" for value in row) for row in rows]
    return "".join(line + end for line in lines)


def last_out(rows: list[Row]) -> dict[str, list[Row]]:
    """The three files of the publishers' split, literally: last = test, second last = valid, the rest = train."""
    by_user: dict[str, list[Row]] = {}
    for row in rows:
        by_user.setdefault(row[0], []).append(row)
    parts: dict[str, list[Row]] = {"train": [], "valid": [], "test": []}
    for own in by_user.values():
        own = sorted(own, key=lambda row: row[3])
        parts["test"].append(own[-1])
        if len(own) > 1:
            parts["valid"].append(own[-2])
        parts["train"] += own[:-2]
    return parts


def put(path: Path, text: str | bytes) -> Path:
    content = text.encode() if isinstance(text, str) else text
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def jsonl(records: list[dict]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def publish(root: Path, rows, records, layout="rating_only", packed=".gz", category=CATEGORY):
    """The files of one category below `root`, as on a host."""
    base = root / "benchmark" / "5core" / layout
    if layout == "rating_only":
        put(base / f"{category}.csv{packed}", csv_text(rows))
    else:
        for part, own in last_out(rows).items():
            put(base / f"{category}.{part}.csv{packed}", csv_text(own))
    put(root / "raw" / "meta_categories" / f"meta_{category}.jsonl{packed}", jsonl(records))
    return root


class Host:
    """A static host with ranges. `requests` lists (method, path, range).

    `fail_after` cuts every body off after that many bytes, `die_after` the first one, and with it the host.
    """

    def __init__(self, root: Path, port: int = 0, ranges: bool = True, tag: str = '"v1"'):
        self.root, self.ranges, self.tag = root, ranges, tag
        self.requests: list[tuple[str, str, str | None]] = []
        self.fail_after: int | None = None
        self.die_after: int | None = None
        self.closed = threading.Event()
        self.block_s = 0.0
        host = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                self.answer(body=False)

            def do_GET(self):
                self.answer(body=True)

            def answer(self, body: bool):
                given = self.headers.get("Range")
                host.requests.append((self.command, self.path, given))
                path = host.root / self.path.lstrip("/")
                if not path.is_file():
                    self.send_error(404)
                    return
                content, start = path.read_bytes(), 0
                match = re.fullmatch(r"bytes=(\d+)-", given or "")
                fresh = self.headers.get("If-Range") in (None, host.tag)
                if match and host.ranges and fresh:
                    start = int(match[1])
                    self.send_response(206)
                    total = len(content)
                    self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(len(content) - start))
                self.send_header("ETag", host.tag)
                self.end_headers()
                if body:
                    self.send_body(content[start:])

            def send_body(self, content: bytes):
                if host.die_after is not None:
                    self.wfile.write(content[: host.die_after])
                    self.close_connection = True
                    host.close()
                    return
                if host.fail_after is not None:
                    self.wfile.write(content[: host.fail_after])
                    self.close_connection = True
                    return
                for at in range(0, len(content), 1 << 14):
                    self.wfile.write(content[at : at + (1 << 14)])
                    time.sleep(host.block_s)

            def log_message(self, format, *args):
                pass

        self.handler = Handler
        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.closed.set()


@contextmanager
def serving(root: Path, **options):
    host = Host(root, **options)
    try:
        yield host
    finally:
        host.close()
