"""Variants of training and of prompts, through all stages of a run."""

import json
import shutil

import numpy as np
import pytest

from llmsrec_jax import pipeline, reproduce
from llmsrec_jax.data import storage
from llmsrec_jax.keys import VECTORS
from llmsrec_jax.presets import PRESETS
from llmsrec_jax.stages.llm import LLMRec
from llmsrec_jax.writer import Writer, read_log
from tests.kills import killed
from tests.systems import named, records, relative_error, tiny


def train_with_a_kill(cfg, folder, monkeypatch) -> None:
    with killed(monkeypatch, checkpoints=3):
        pipeline.run(cfg, folder, "train")
    pipeline.run(cfg, folder, "train")


def test_every_position_is_a_target(copy, finished):
    """Of at most so many users; on the same data, teacher and tokens, with steps in proportion to their samples."""
    pipeline.run(tiny({"train.targets": "all", "train.max_users": 50}), copy, "train")
    run = pipeline.Run(tiny({"train.max_users": 50}), copy, Writer(copy))
    users = run.llm._samples.users
    samples = np.sum(run.data.dataset.train.lengths[users] - 1)
    assert len(users) == 50 < samples
    steps = {line["step"] for line in read_log(copy / "metrics.jsonl") if line["stage"] == "train"}
    assert max(steps) == samples // 8
    for stage, count in (("data", 1), ("teacher", 1), ("tokens", 1), ("checkpoints", 2)):
        assert len(list((copy / stage).iterdir())) == count, stage


@pytest.mark.slow
def test_users_with_one_target_are_trained_on_alike(tmp_path):
    """Sequences of two training items: the same parameters to the last bit, from two trainings."""
    rng, day, tables = np.random.default_rng(0), 86_400_000, {"items": ["item,title"]}
    tables["items"] += [f"i{item},thing {item}" for item in range(60)]
    tables["rows"] = ["user,item,timestamp"] + [
        f"u{user},i{item},{day * n}"
        for user in range(24)
        for n, item in enumerate(rng.choice(60, 4, replace=False))
    ]
    for name, lines in tables.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    files = {name: str(tmp_path / f"{name}.csv") for name in tables}
    settings = {"data.source": "files", "data.kcore": "none", "data.files.items": files["items"]}
    settings |= {"data.files.interactions": files["rows"], "evaluate.max_users": 0}

    def trained(targets: str) -> dict[str, np.ndarray]:
        run = pipeline.Run(tiny({**settings, "train.targets": targets}), tmp_path, Writer(tmp_path))
        for stage in (run.data.prepare, run.teacher.train, run.tokens.tokenize, run.llm.train):
            stage()
        assert len(run.llm._samples) == 24
        return named(run.llm._params)

    last, every = trained("last"), trained("all")
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    for name, values in last.items():
        np.testing.assert_array_equal(values, every[name])


def test_what_the_teacher_makes_of_a_history_is_told(copy):
    """Of the very history that is shown, in training, validation and every order of the test; in whatever batches."""
    cfg = {"prompts.user_repr": True, "order.permutations": 1, "llm.dtype": "fp32"}
    pipeline.run(tiny(cfg), copy)
    for stage, count in (("data", 1), ("teacher", 1), ("tokens", 1), ("checkpoints", 2)):
        assert len(list((copy / stage).iterdir())) == count, stage
    run = pipeline.Run(tiny(cfg), copy, Writer(copy))
    told = []
    for number in (0, 1):
        histories = run.data.test_histories(number)
        prompts = run.llm._user_prompts(histories).take(np.arange(len(histories)))
        np.testing.assert_array_equal(prompts.cf_user_repr, run.teacher.users(histories))
        told.append(prompts.cf_user_repr)
    assert np.abs(told[0] - told[1]).max(axis=1).min() > 0
    stages = run.llm._permuted(1), run.work.stage("vectors", VECTORS)
    files = [stage.folder / "test.npz" for stage in stages]
    before = [storage.read_arrays(file) for file in files]
    for stage in ("vectors", "permuted"):
        shutil.rmtree(copy / stage)
    pipeline.run(tiny({**cfg, "evaluate.batch": 8}), copy, "evaluate")
    for file, arrays in zip(files, before, strict=True):
        for name, values in storage.read_arrays(file).items():
            assert relative_error(values, arrays[name]) < 1e-6


def test_lora_trains_goes_on_and_is_evaluated(copy, monkeypatch):
    """On the data, teacher and tokens of the run without; killed and gone on with, the parameters of a run that was not."""
    cfg = {"lora.rank": 2, "llm.item_store": "auto", "train.save_every_s": 0.0}
    cfg = tiny({**cfg, "llm.dtype": "fp32"})

    def run() -> pipeline.Run:
        return pipeline.Run(cfg, copy, Writer(copy))

    pipeline.run(cfg, copy)
    whole = named(run().llm._params)
    assert run().llm.store is None and run().llm.frozen.items is None
    for stage, count in (("data", 1), ("teacher", 1), ("tokens", 1), ("checkpoints", 2)):
        assert len(list((copy / stage).iterdir())) == count, stage
    names = {row["model"] for row in records(copy)}
    assert {"llm_srec", "llm_srec, LoRA"} <= names
    assert np.any(whole["lora.b.q"]) and whole["lora.a.v"].shape == (3, 32, 2)
    assert not [name for name in whole if name.startswith("layers")]
    shutil.rmtree(run().llm._stage.folder)
    train_with_a_kill(cfg, copy, monkeypatch)
    for name, values in named(run().llm._params).items():
        np.testing.assert_array_equal(values, whole[name])


READS = {"user_head", "item_head", "user_out", "item_out"}
TRAINS = {  # words -> what trains in its last training, of leaves that differ from the first ones
    "tallrec": READS | {"lora"},
    "llara": READS | {"lora", "item_projector"},
    "collm": READS | {"item_projector", "user_projector"},
    "tallrec,title": {"lora"},
    "llara,title": {"lora", "item_projector"},
    "collm,title": {"item_projector", "user_projector"},
}


@pytest.mark.slow
@pytest.mark.parametrize("words", TRAINS)
def test_rows_train_what_is_theirs_and_go_on_after_a_kill(copy, monkeypatch, words):
    """Killed in its first training and gone on with: the parameters of a run that was not. With LLaRA's curriculum."""
    small = {"lora.rank": 2, "llm.dtype": "fp32", "train.save_every_s": 0.0}
    small |= {"train.curriculum": True} if words.startswith("llara") else {}
    small |= {"train.negatives": 4} if "title" in words else {}
    system, *task = [PRESETS[word] for word in words.split(",")]
    cfg = tiny(system | (task[0] if task else {}) | small)
    pipeline.run(cfg, copy, "train")
    run = pipeline.Run(cfg, copy, Writer(copy))
    before, whole = named(run.llm._model[1]), named(run.llm._params)
    moved = {name.partition(".")[0] for name in whole if np.any(whole[name] != before[name])}
    assert moved == TRAINS[words]
    for one in filter(None, (run, run.before)):
        shutil.rmtree(one.llm._stage.folder)
    train_with_a_kill(cfg, copy, monkeypatch)
    for name, values in named(pipeline.Run(cfg, copy, Writer(copy)).llm._params).items():
        np.testing.assert_array_equal(values, whole[name])


@pytest.mark.slow
def test_rows_of_llm4rec_fill_their_cells(copy):
    """Of Table 6, with the numbers of the runs they are."""
    reproduce.run(tiny(), copy, "table6", seeds=(0,), rows="LLaRA,CoLLM")
    told = json.loads((copy / "experiments" / "table6.json").read_text())
    kept = {(r["model"], r["metric"], r["protocol"], r["slice"]): r for r in records(copy)}
    filled = [cell for cell in told["cells"] if cell["row"] in ("LLaRA", "CoLLM")]
    assert len(filled) == 8
    for cell in filled:
        (value,) = cell["values"]
        model, metric = cell["row"].lower(), cell["column"].lower()
        assert value["value"] == kept[model, metric, "sampled", "all"]["value"]


def test_titles_alone(copy):
    """No projector of embeddings trains; an item's whole prompt is constant but for its Out token, and can be kept so."""
    cfg = {"prompts.item_repr": False, "llm.item_store": "hbm", "llm.dtype": "fp32"}
    pipeline.run(tiny(cfg), copy)
    assert "llm_srec, titles only" in {row["model"] for row in records(copy)}
    run = pipeline.Run(tiny(cfg), copy, Writer(copy))
    params = named(run.llm._params)
    assert "user_out" in params and not [name for name in params if "projector" in name]
    before = run.llm.vectors
    shutil.rmtree(copy / "vectors")
    pipeline.run(tiny({**cfg, "llm.item_store": "recompute"}), copy, "evaluate")
    assert relative_error(run.llm.vectors.item, before.item) < 1e-6
    assert relative_error(run.llm.vectors.user, before.user) < 1e-6


def test_lora_first_is_part_of_the_backbone_then(copy):
    """CoLLM (S10): A and B are those of a run on titles alone, TALLRec's; afterwards neither they nor the backbone train."""
    small = {"lora.rank": 2, "llm.dtype": "fp32"}
    collm, tallrec = (tiny(PRESETS[name] | small) for name in ("collm", "tallrec"))
    pipeline.run(collm, copy)
    assert {"collm", "teacher"} <= {row["model"] for row in records(copy)}
    runs = [
        pipeline.Run(cfg, copy, Writer(copy))
        for cfg in (collm, tallrec, tiny({"llm.dtype": "fp32"}))
    ]
    one, alone, plain = runs
    assert one.before is not None and alone.before is None
    assert one.before.llm._stage.folder == alone.llm._stage.folder
    trained, learned = named(one.llm._params), named(alone.llm._params)
    assert not [name for name in trained if name.startswith("lora")]
    assert [name for name in trained if name.startswith("user_projector")]
    assert np.any(learned["lora.b.v"])
    assert one.tokens.tokenizer.fingerprint == alone.tokens.tokenizer.fingerprint
    found, read, before = (named(run.llm._backbone[1]) for run in (one, alone, plain))
    np.testing.assert_array_equal(found["table"], read["table"])
    for name, weight in found.items():
        moved = np.abs(weight - before[name]).max()
        assert (moved > 1e-6) == (name in ("layers.q", "layers.v")), name
    wanted = np.einsum("ldr,lrnh->ldnh", learned["lora.a.q"], learned["lora.b.q"])
    np.testing.assert_allclose(found["layers.q"] - before["layers.q"], 8.0 * wanted, atol=1e-6)


def test_lora_first_is_checked_before_the_teacher_trains(tmp_path, monkeypatch):
    """The run before needs more memory than the one it is for."""

    def require_memory(llm: LLMRec) -> None:
        if llm._work.cfg.lora.trains:
            raise ValueError("does not fit")

    monkeypatch.setattr(LLMRec, "require_memory", require_memory)
    with pytest.raises(ValueError, match="does not fit"):
        pipeline.run(tiny(PRESETS["collm"] | {"lora.rank": 2}), tmp_path)
    assert (tmp_path / "tokens").exists() and not (tmp_path / "teacher").exists()
