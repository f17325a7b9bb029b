"""Runs with histories in another order: at the test, and in training."""

from dataclasses import replace

import numpy as np
import pytest

from llmsrec_jax import config, pipeline, train
from llmsrec_jax.data import orders
from llmsrec_jax.stages.llm import LLMRec
from llmsrec_jax.writer import Writer
from tests.systems import move_only_the_first, records, tiny


def test_nothing_to_permute_is_found_before_anything_trains(tmp_path):
    """Of a window of one item."""
    table = tmp_path / "rows.csv"
    day = 86_400_000 * 20_000
    rows = [f"u{u},{x}{u},{day + k}" for u in range(6) for k, x in enumerate("aabc")]
    table.write_text("user,item,timestamp\n" + "\n".join(rows) + "\n")
    settings = {"data.source": "files", "data.files.interactions": str(table), "data.kcore": "none"}
    cfg = tiny({**settings, "order.permutations": 2, "evaluate.negatives": 1, "evaluate.ks": (1,)})
    cfg = config.apply(
        cfg, {"order.scope": "window", "prompts.history_len": 1, "train.metric": "hr@1"}
    )
    with pytest.raises(ValueError, match="order.permutations=2: no test history has two different"):
        pipeline.run(cfg, tmp_path / "run", "teacher")
    assert not (tmp_path / "run" / "teacher").exists()


def test_histories_in_another_order(copy, finished, capsys, monkeypatch):
    """Nothing trains; who is blind to order sees no change at all, and one permutation more costs one more."""
    monkeypatch.setattr(train, "fit", None)
    pipeline.run(tiny({"order.permutations": 1}), copy, "evaluate")
    assert len(list((copy / "permuted").iterdir())) == 1
    assert "another order changes 100.0% of the test histories" in capsys.readouterr().out
    first = [row for row in records(copy) if row["condition"] == "shuffled"]
    pipeline.run(tiny({"order.permutations": 2}), copy, "evaluate")
    assert len(list((copy / "permuted").iterdir())) == 2
    rows = records(copy)
    shuffled = [row for row in rows if row["condition"] == "shuffled"]
    assert len(shuffled) == len(first) and {row["permutations"] for row in shuffled} == {2}
    assert {row["model"] for row in shuffled} == {"popularity", "teacher", "llm_srec"}
    original = [row for row in rows if row["condition"] == "original"]
    assert original == records(finished)
    alike = {r["model"]: r["value"] for r in shuffled if r["metric"] == "cosine"}
    assert alike["popularity"] == 1 and 0 < alike["teacher"] < 0.99 and alike["llm_srec"] < 1
    changed = {r["model"]: r["change"] for r in shuffled if "change" in r}
    assert changed["popularity"]["change"] == 0 and changed["teacher"]["change"] != 0
    for row in shuffled:
        if row["model"] == "popularity" and row["metric"] != "cosine":
            same = ("model", "protocol", "slice", "metric")
            twin = next(r for r in original if all(r[name] == row[name] for name in same))
            assert row["value"] == twin["value"]


def test_the_identity_changes_nothing(copy, monkeypatch):
    """Of an order in which only the first user's items move, all others keep ranks and vectors to the bit."""
    move_only_the_first(monkeypatch)
    cfg = pipeline.settled(tiny({"order.permutations": 1}))
    pipeline.run(cfg, copy, "evaluate")
    judgement = pipeline.Run(cfg, copy, Writer(copy)).judgement
    models, users = judgement.outcomes().models, judgement.stage.info["users"]
    assert judgement.stage.info["changed"] == 1 / users
    for name in ("popularity", "teacher", "llm_srec"):
        one = models[name]
        assert set(one.permuted) == set(one.ranks) == {"sampled", "full"}
        for protocol, counts in one.ranks.items():
            for before, after in zip(counts, one.permuted[protocol], strict=True):
                np.testing.assert_array_equal(after[:, 1:], before[None, 1:])
        for cosine in one.alike.values():
            assert (cosine[1:] == 1).all() and (cosine[0] < 1) == (name != "popularity")


def test_every_model_reads_the_same_stored_orders(copy, monkeypatch):
    """They are drawn once, and what is read is the file."""
    changes = {"order.permutations": 1, "order.train": "shuffled"}
    cfg = pipeline.settled(tiny(changes))
    pipeline.run(cfg, copy, "prepare")
    assert len(list((copy / "orders").iterdir())) == 2
    monkeypatch.setattr(orders, "shuffle", None)
    data = pipeline.Run(cfg, copy, Writer(copy)).data
    users, _ = data.candidates("test")
    first, other = data.test_histories(0), data.test_histories(1)
    assert orders.changed(first, other).all()
    assert orders.changed(data.dataset.train, data.training.train).any()
    folder = data._test_order(1).folder
    orders.save(folder, replace(other, items=first.items))
    np.testing.assert_array_equal(data.test_histories(1).items, first.items)


def test_training_sequences_in_another_order(copy, finished, monkeypatch):
    """Everything that trains is another one, on the same data, candidates, validation and test."""
    prompts, read = LLMRec._user_prompts, []
    monkeypatch.setattr(
        LLMRec,
        "_user_prompts",
        lambda self, histories: read.append(histories) or prompts(self, histories),
    )
    pipeline.run(tiny({"order.train": "shuffled"}), copy)
    data = pipeline.Run(tiny(), copy, Writer(copy)).data
    for histories, split in zip(read, ("valid", "test"), strict=True):
        kept = data.dataset.inputs(split, data.candidates(split)[0])
        np.testing.assert_array_equal(histories.items, kept.items)
    for stage, count in (("data", 1), ("candidates", 2), ("tokens", 1), ("teacher", 2)):
        assert len(list((copy / stage).iterdir())) == count, stage
    rows = [row for row in records(copy) if row["slice"] == "all" and row["metric"] == "mrr@10"]
    found = {row["model"]: row for row in rows if row["protocol"] == "sampled"}
    for name in ("teacher", "llm_srec"):
        other = found[f"{name}, shuffled training"]
        assert other["value"] != found[name]["value"]
        assert other["candidates_hash"] == found[name]["candidates_hash"]
    assert len({row["config_hash"] for row in rows if row["model"] == "popularity"}) == 1
