"""Time and memory of preparing made files of the real size and shape. Not a test: run it by hand.

  python -m tests.data.amazon_reviews_2023.benchmark --folder=DIR [--scale=0.1]

At --scale=1 it makes Electronics: 15 M interactions of 1.6 M users and 370 k items, metadata lines of 3 kB. Each stage is one
fresh process; its peak memory is what the kernel counted. The training loader against the step that it feeds:

  python -m tests.data.amazon_reviews_2023.benchmark --folder=DIR --scale=0.01 --stage=make
  python -m tests.data.amazon_reviews_2023.benchmark --folder=DIR --stage=loader
"""

import argparse
import gzip
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from llmsrec_jax import config

USERS, ITEMS, ROWS_PER_USER, META_BYTES = 1_641_027, 368_228, 9.43, 3000
CATEGORY = "Electronics"
LOADED, STEPS = 1000, 5  # steps of the loader, and of the model
_LETTERS = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", dtype=np.uint8)


def names(count: int, prefix: bytes, letters: int, rng: np.random.Generator) -> np.ndarray:
    """Distinct ids that look like the published ones."""
    digits = rng.permutation(count)[:, None] // 32 ** np.arange(5) % 32
    noise = rng.integers(0, 32, (count, letters - 5))
    text = _LETTERS[np.concatenate([noise, digits], axis=1)]
    head = np.tile(np.frombuffer(prefix, dtype=np.uint8), (count, 1))
    whole = np.ascontiguousarray(np.concatenate([head, text], axis=1))
    return whole.view(f"S{whole.shape[1]}")[:, 0].astype(str)


def make(folder: Path, scale: float) -> None:
    """Users with geometric lengths (5 and more), items by Zipf's law, half of the neighbours days apart."""
    import polars

    rng = np.random.default_rng(0)
    users, items = (
        names(int(USERS * scale), b"AE", 26, rng),
        names(int(ITEMS * scale), b"B0", 8, rng),
    )
    lengths = 4 + rng.geometric(1 / (ROWS_PER_USER - 4), len(users))
    user = np.repeat(np.arange(len(users)), lengths)
    rank = rng.random(len(user)) ** 3 * len(items)  # popular items come first
    item = rng.permutation(len(items))[rank.astype(np.int64)]
    moment = rng.integers(1_300_000_000_000, 1_690_000_000_000, len(user))
    order = np.lexsort((moment, user))
    table = polars.DataFrame(
        {
            "user_id": polars.Series(users).gather(user),
            "parent_asin": polars.Series(items).gather(item[order]),
            "rating": np.full(len(user), 5.0),
            "timestamp": moment[order],
        }
    )
    print(f"{len(user):,} interactions, {len(users):,} users, {len(items):,} items", flush=True)
    path = folder / f"{CATEGORY}.csv"
    table.write_csv(path)
    with open(path, "rb") as plain, gzip.open(f"{path}.gz", "wb", compresslevel=1) as packed:
        while block := plain.read(1 << 24):
            packed.write(block)
    path.unlink()
    words = [f"word{n}" for n in rng.integers(0, 9999, 5000)]
    with gzip.open(folder / f"meta_{CATEGORY}.jsonl.gz", "wt", compresslevel=1) as file:
        for number, key in enumerate(items):
            start = number * 37 % 4000
            text = " ".join(words[start : start + META_BYTES // 10])
            record = {
                "main_category": "All Electronics",
                "title": " ".join(words[start : start + 14]),
                "average_rating": 4.2,
                "features": [text[:900], text[900:1500]],
                "description": [text[1500:]],
                "price": None,
                "images": [
                    {"thumb": "https://m.media-amazon.com/images/I/x.jpg", "variant": "MAIN"}
                ],
                "details": {"Brand": words[start], "Date First Available": "May 1, 2012"},
                "parent_asin": key,
                "bought_together": None,
            }
            file.write(json.dumps(record) + "\n")


def settings(folder: Path, words: str = "") -> config.Config:
    given = {"source": "amazon", "category": CATEGORY, "manual_dir": str(folder)}
    given["cache_dir"] = str(folder / "cache")
    made = config.apply(config.Config(), {f"data.{name}": value for name, value in given.items()})
    return config.preset(made, words)


def stages(folder: Path) -> None:
    """What `--mode=prepare` does, timed; then what a run with another seed does."""
    from llmsrec_jax.data import sampling, sources, splits

    cfg = settings(folder).data
    started = clock = time.monotonic()
    busy = time.process_time()

    def lap(what: str) -> None:
        nonlocal clock, busy
        now, worked = time.monotonic(), time.process_time()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        times = f"{now - clock:8.1f} s {worked - busy:8.1f} s of CPU"
        print(f"{what:<24}{times}   peak {peak:5.2f} GiB", flush=True)
        clock, busy = now, worked

    catalog, table, counts = sources.load(cfg, 0)
    lap("source")
    dataset, _ = splits.prepare(catalog, table, cfg, 0, counts)
    del catalog, table
    lap("k-core, order, split")
    dataset.save(folder / "run")
    lap("save")
    for split, limit in (("valid", 2000), ("test", 0)):
        users = splits.sample_users(dataset.eligible(split), limit, 0)
        candidates = sampling.candidates(dataset, split, users, 99, "uniform", 0)
        sampling.save_candidates(folder / "run", split, users, candidates)
        lap(f"candidates, {split}")
    print(f"{'all':<24}{time.monotonic() - started:8.1f} s", flush=True)


def loader(folder: Path) -> None:
    """Users per second of LLM-SRec's batches alone, and of the step they go into: of the smoke preset."""
    import jax

    from llmsrec_jax import pipeline, train

    fit = train.fit

    def measure(job: train.Job, state: train.State, checkpoints, writer):
        if job.stage != "train":
            return fit(job, state, checkpoints, writer)
        stream = job.batches(0, LOADED)
        batches = [next(stream) for _ in range(STEPS)]
        clock, busy = time.monotonic(), time.process_time()
        users = job.batch_users * sum(1 for _ in stream)
        report("loader", users, clock, busy)
        for batch in batches:  # the first ones compile
            state = jax.block_until_ready(job.step(job.frozen, state, job.put(batch))[0])
        clock, busy = time.monotonic(), time.process_time()
        for batch in batches:
            state = jax.block_until_ready(job.step(job.frozen, state, job.put(batch))[0])
        report("step", job.batch_users * len(batches), clock, busy)
        sys.exit()

    def report(what: str, users: int, clock: float, busy: float) -> None:
        wall, worked = time.monotonic() - clock, time.process_time() - busy
        print(f"{what:<8}{users / wall:10,.1f} users/s{users / worked:10,.1f} per s of CPU")

    train.fit = measure
    pipeline.run(settings(folder, "smoke"), folder / "loader", "train")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--stage", choices=("make", "stages", "loader"))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.stage == "make":
        make(given.folder, given.scale)
    elif given.stage == "stages":
        stages(given.folder)
    elif given.stage == "loader":
        loader(given.folder)
    else:
        for stage in ("make", "stages", "stages"):
            print(f"== {stage}", flush=True)
            subprocess.run(
                [sys.executable, "-m", __spec__.name, *sys.argv[1:], f"--stage={stage}"], check=True
            )


if __name__ == "__main__":
    main()
