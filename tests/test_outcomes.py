"""What is kept of every test user: saved, read, compared."""

import json
from dataclasses import replace

import numpy as np
import pytest

from llmsrec_jax import cases, config, outcomes
from llmsrec_jax.checkpoint import read_json
from llmsrec_jax.outcomes import Outcome, Outcomes
from tests.factories import random_dataset

CFG = config.Config()
ABOVE = {"teacher": [0, 3, 50, 12], "llm_srec": [2, 40, 60, 1], "popularity": [0, 0, 0, 0]}


def made() -> Outcomes:
    tied = np.zeros(4, np.int64)
    top = np.tile(np.arange(1, 11, dtype=np.int32), (4, 1))
    each = {}
    for name, above in ABOVE.items():
        counts = np.array(above), tied
        permuted = {"sampled": (np.stack([counts[0], counts[0] + 1]), np.stack([tied, tied]))}
        values = {"novelty@10": np.arange(4.0)}
        each[name] = Outcome({"sampled": counts, "full": counts}, top, values, 0.25, permuted)
    each["teacher"] = replace(each["teacher"], alike={"cosine": np.linspace(0, 1, 4)})
    users = np.arange(4, dtype=np.int32)
    masks = {"all": users >= 0, "warm": users < 2}
    return Outcomes(users, np.char.add("u", users.astype(str)), "c0ffee", masks, each)


def test_they_survive_the_disk(tmp_path):
    first = made()
    first.save(tmp_path / "outcomes.npz")
    second = Outcomes.load(tmp_path / "outcomes.npz")
    assert second.candidates == first.candidates and list(second.models) == list(first.models)
    told = [json.dumps(one.records("teacher", CFG, {})) for one in (first, second)]
    assert told[0] == told[1]
    (tmp_path / "outcomes.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"outcomes\.npz is damaged"):
        Outcomes.load(tmp_path / "outcomes.npz")


def test_who_is_right_alone():
    """Teacher: users 0, 1; LLM-SRec: users 0, 3. Popularity is no model of a user."""
    assert made().alone("teacher").tolist() == [0, 1, 0, 0]
    assert made().alone("llm_srec").tolist() == [0, 0, 0, 1]
    rows = made().records("teacher", CFG, {})
    found = {(r["metric"], r["slice"], r["condition"]): r for r in rows if r["protocol"] != "full"}
    assert found["hr@10", "warm", "original"]["value"] == 1.0
    assert found["cosine", "all", "shuffled"]["value"] == pytest.approx(0.5)
    assert found["hr@5", "all", "shuffled"]["value"] == pytest.approx(0.5)
    coverage = next(r for r in rows if r["metric"] == "coverage@10")
    assert (coverage["value"], coverage["se"]) == (0.25, None)


def test_other_candidates_or_users_are_not_compared():
    outcomes.require_comparable([made(), made()])
    with pytest.raises(
        ValueError, match="different candidates cannot be compared.*c0ffee and dead"
    ):
        outcomes.require_comparable([made(), replace(made(), candidates="dead")])
    with pytest.raises(ValueError, match="different test users"):
        outcomes.require_comparable([made(), replace(made(), users=np.arange(1, 5))])


def test_cases_say_what_every_model_thought():
    dataset = random_dataset(users=4, items=30)
    told = cases.collect(made(), dataset, {name: name for name in ABOVE}, seed=0)
    first = told["cases"][0]
    assert first["ranks"] == {"teacher": 1, "llm_srec": 3, "popularity": 1}
    assert first["hit"] == {"teacher": True, "llm_srec": True, "popularity": True}
    assert len(first["top"]["teacher"]) == 10 and len(first["history"]) > 1
    text = cases.render(first, 2)
    assert f"next: {first['target']}" in text and "the last 2 of" in text


def test_cases_of_several_runs_stand_together(tmp_path):
    """A variant judged later joins the others; other candidates take their place."""
    dataset, file = random_dataset(users=4, items=30), tmp_path / "cases.json"
    names = {name: name for name in ABOVE}
    cases.merge(file, cases.collect(made(), dataset, names, seed=0))
    cases.merge(file, cases.collect(made(), dataset, names | {"llm_srec": "variant"}, seed=0))
    told = read_json(file)
    assert told["models"] == ["teacher", "llm_srec", "popularity", "variant"]
    assert {*told["cases"][0]["top"]} == {*told["models"]} == {*told["cases"][0]["ranks"]}
    others = replace(made(), candidates="dead")
    cases.merge(file, cases.collect(others, dataset, names, seed=0))
    assert read_json(file)["models"] == ["teacher", "llm_srec", "popularity"]
