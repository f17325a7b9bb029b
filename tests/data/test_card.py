"""The data card: numbers by hand, and what is printed."""

import json

import numpy as np
import pytest

from llmsrec_jax import config
from llmsrec_jax.data.card import render_card, tie_report
from llmsrec_jax.data.interactions import Catalog, Interactions, UserSequences
from llmsrec_jax.data.splits import prepare


def made_card():
    keys = np.asarray(["", "a", "b", "c", "d"])
    catalog = Catalog(keys, ["", "A", "B", "Empty title", "D"], np.asarray([0, 1, 1, 0, 1], bool))
    day = 86_400_000
    rows = [(0, 1, 0), (0, 2, day), (0, 4, day), (1, 1, 0), (1, 2, 1), (1, 3, 2), (1, 4, 3)]
    user, item, time = (np.asarray(column) for column in zip(*rows, strict=True))
    table = Interactions(user, item, time, np.asarray(["u", "v"]))
    cfg = config.Data(kcore="none", ties="file", name="made")
    return prepare(catalog, table, cfg, 0, {"duplicate_items": 2})[1]


def test_numbers_by_hand():
    expected = {
        **{"name": "made", "users": 2, "items": 4, "interactions": 7, "length_max": 4},
        **{"length_mean": 3.5, "length_median": 3.5, "first_day": "1970-01-01"},
        **{"last_day": "1970-01-02", "title_coverage": 0.75, "tied_pairs": 1 / 5},
        **{"tied_last_two": 0.5, "cold_items": 2, "cold_test_targets": 2, "train_users": 1},
        **{"valid_users": 2, "test_users": 2, "duplicate_items": 2, "users_dropped_by_kcore": 0},
    }
    card = made_card()
    assert {name: card[name] for name in expected} == expected
    assert json.loads(json.dumps(card)) == card


def test_targets_that_the_user_had_before_are_counted():
    """Of three users: the last item of one is in its training sequence, of another its validation item."""
    catalog = Catalog(np.asarray(["", *"abc"]), ["", *"ABC"], np.arange(4) > 0)
    item = np.array([(1, 2, 3, 1), (1, 2, 3, 3), (1, 1, 2, 3)])
    user, day = np.indices(item.shape)
    columns = (column.ravel() for column in (user, item, 86_400_000 * day))
    table = Interactions(*columns, np.asarray([*"uvw"]))
    card = prepare(catalog, table, config.Data(kcore="none"), 0)[1]
    assert card["repeated_test_targets"] == 2
    assert "2  of those, test target is in the user's history" in render_card(card)


def test_the_text_shows_what_happened_only():
    text = render_card(made_card())
    assert text.splitlines()[0] == "dataset made"
    assert "75.0 %  items with a title" in text
    assert "2  further rows of an item in the items file, ignored" in text
    assert "k-core" not in text


def test_ties_of_nothing_are_zero():
    empty = UserSequences(np.asarray([0, 1]), np.asarray([1]), np.asarray([5]))
    assert tie_report(empty) == {"tied_pairs": 0.0, "tied_last_two": 0.0}


@pytest.mark.parametrize("time", [-86_400_000, 4_102_444_800_000])
def test_days_before_1970_and_after_2038(time):
    catalog = Catalog(np.asarray(["", "a"]), ["", "A"], np.asarray([False, True]))
    one = np.asarray([0]), np.asarray([1]), np.asarray([time]), np.asarray(["u"])
    card = prepare(catalog, Interactions(*one), config.Data(kcore="none"), 0)[1]
    assert card["first_day"] == card["last_day"] == ("1969-12-31" if time < 0 else "2100-01-01")
