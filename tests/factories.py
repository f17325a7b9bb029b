"""Small made datasets for tests."""

from pathlib import Path

import numpy as np

from llmsrec_jax.data.interactions import Catalog, UserSequences, offsets_of
from llmsrec_jax.data.splits import Dataset

WORDS = "red blue small large steel wooden lamp chair desk mug pen bag".split()


def catalog(items: int, seed: int = 0) -> Catalog:
    rng = np.random.default_rng(seed)
    titles = [
        "",
        *(" ".join(rng.choice(WORDS, rng.integers(1, 5))) + f" {i}" for i in range(items)),
    ]
    keys = np.array(["", *(f"i{n}" for n in range(1, items + 1))])
    return Catalog(keys, titles, np.array([bool(t) for t in titles]))


def dataset(sequences: list[list[int]], items: int) -> Dataset:
    """Leave-last-out over the given item sequences; a day between interactions."""
    day = 86_400_000
    train = [s[:-2] for s in sequences]
    lengths = np.array([len(t) for t in train])
    times = np.concatenate([day * np.arange(len(t)) for t in train])
    flat = np.array([i for t in train for i in t], np.int32)
    last = lambda k: np.array([s[k] for s in sequences], np.int32)
    return Dataset(
        name="made",
        catalog=catalog(items),
        user_keys=np.array([f"u{n}" for n in range(len(sequences))]),
        train=UserSequences(offsets_of(lengths), flat, times),
        valid_item=last(-2),
        valid_time=day * lengths,
        test_item=last(-1),
        test_time=day * (lengths + 1),
    )


def random_dataset(users: int = 30, items: int = 60, longest: int = 14, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, longest + 1, users)
    return dataset([rng.choice(items, n, replace=False) + 1 for n in lengths], items)


def files(made: Dataset, folder: Path) -> dict[str, str]:
    """`made` as tables of your own: {setting of config.Files: path}."""
    interactions, keys = ["user,item,timestamp"], made.catalog.keys
    for user, name in enumerate(made.user_keys):
        rows = zip(*made.known()[user], strict=True)
        interactions += [f"{name},{keys[item]},{time}" for item, time in rows]
    items = ["item,title", *map(",".join, zip(keys[1:], made.catalog.titles[1:], strict=True))]
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("interactions", interactions), ("items", items)):
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return {name: str(folder / f"{name}.csv") for name in ("interactions", "items")}
