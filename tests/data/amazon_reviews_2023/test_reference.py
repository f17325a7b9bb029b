"""The `reference` preset against a literal reading of D34 and D35, written here without the package."""

import random
from collections import Counter

import numpy as np
import pytest

from llmsrec_jax import config, rules
from llmsrec_jax.data import sources, splits
from tests.data.amazon_reviews_2023 import made

USERS, ITEMS = 400, 60


def literally(parts: dict, rate: float):
    """Users, items and their sequences with the authors' numbers: plain dictionaries, row by row."""
    users, items = {}, {}
    history = {part: {} for part in parts}
    when = {}
    for part in ("train", "valid", "test"):
        for user, item, _, moment in parts[part]:
            users.setdefault(user, len(users) + 1)
            items.setdefault(item, len(items) + 1)
            history[part].setdefault(user, []).append(item)
            when[user, item] = moment
    random.seed(0)
    drawn = set(random.sample(list(users), int(len(users) * rate)))
    of_user, of_item = Counter(), Counter()
    for part in parts:
        for user in drawn:
            for item in history[part].get(user, ()):
                of_user[user] += 1
                of_item[item] += 1
    user_number, item_number, result = {}, {}, {"train": {}, "valid": {}, "test": {}}
    for part in ("train", "valid", "test"):
        for user in dict.fromkeys(row[0] for row in parts[part]):
            if user not in drawn or of_user[user] <= 4:
                continue
            kept = [item for item in history[part][user] if of_item[item] > 4]
            if part == "train" and len(kept) <= 4 or part != "train" and user not in user_number:
                continue
            for item in kept:
                user_number.setdefault(user, len(user_number) + 1)
                item_number.setdefault(item, len(item_number) + 1)
                own = result[part].setdefault(user_number[user], [])
                own.append((item_number[item], when[user, item]))
    return user_number, item_number, result


@pytest.fixture(scope="module")
def rows():
    """Rare items, short and long users, ties: enough that every rule drops something."""
    rng = np.random.default_rng(7)
    popular = rng.zipf(1.3, size=200_000) % (ITEMS * 6 - 1)
    rows, at = [], 0
    for number in rng.permutation(USERS):
        bought = list(dict.fromkeys(popular[at : at + 200].tolist()))[: 5 + rng.poisson(3)]
        at += 200
        if number % 5 == 0:
            bought.append(ITEMS * 6 - 1)  # only ever the last one: a cold item (D35)
        times = np.sort(made.FIRST_MS + rng.integers(0, 30, len(bought)) * 86_400_000)
        times[-1] += 1
        name = f"AE{number:026X}"
        rows += [(name, f"B{item:09d}", 5.0, int(t)) for item, t in zip(bought, times, strict=True)]
    return rows


@pytest.mark.parametrize("rate", [1.0, 0.33, 0.5])
@pytest.mark.parametrize("layout", ["rating_only", "last_out"])
def test_the_same_users_items_order_and_ids(tmp_path, rows, rate, layout):
    root = made.publish(tmp_path / "root", rows, made.metadata(ITEMS * 6), layout)
    cfg = config.preset(config.Config(), "reference").data
    cfg.source, cfg.category, cfg.user_share = "amazon", made.CATEGORY, rate
    cfg.manual_dir, cfg.cache_dir = str(root), str(tmp_path / "cache")
    dataset, card = splits.prepare(*sources.load(cfg, 0)[:2], cfg, 0)
    users, items, expected = literally(made.last_out(rows), rate)

    assert dataset.user_keys.tolist() == list(users)
    assert dataset.catalog.keys[1:].tolist() == list(items)
    for user in range(len(users)):
        read = [(int(i), int(t)) for i, t in zip(*dataset.train[user], strict=True)]
        assert read == expected["train"][user + 1]
    columns = {
        "valid": (dataset.valid_item, dataset.valid_time),
        "test": (dataset.test_item, dataset.test_time),
    }
    for part, (item, time) in columns.items():
        for user in range(len(users)):
            found = [(int(item[user]), int(time[user]))] if item[user] else []
            assert found == expected[part].get(user + 1, [])
    # Every rule had something to do.
    assert 0 < len(users) < int(USERS * rate)
    assert any(not expected["test"].get(user + 1) for user in range(len(users)))
    assert card["cold_items"] > 0 and card["interactions_dropped_by_kcore"] > 0


def test_the_rates_and_the_preset():
    from importlib import util
    from pathlib import Path

    rates = {"electronics": 0.05, "scientific": 1.0, "movies": 0.05, "cds": 0.33}
    for name, rate in rates.items():
        path = Path(__file__).parents[3] / "configs" / f"{name}.py"
        spec = util.spec_from_file_location(name, path)
        assert spec and spec.loader
        module = util.module_from_spec(spec)
        spec.loader.exec_module(module)
        cfg = module.get_config("reference")
        assert cfg.data.user_share == rate and cfg.data.source == "amazon"
        assert (cfg.data.user_sample, cfg.data.kcore, cfg.data.ties) == (
            *("reference", "reference", "file"),
        )
        rules.validate(cfg)
        assert module.get_config().data.kcore == "iterative"
