"""The stages as a whole, on a shop so small that its numbers mean nothing."""

import ast
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from llmsrec_jax import config, keys, parallel, pipeline, results, train
from llmsrec_jax.benchmark import timing
from llmsrec_jax.data import sources
from llmsrec_jax.memory import GIB, MARGIN, RetrievalJob
from llmsrec_jax.prompts.tokens import ItemTokens
from llmsrec_jax.report import systems
from llmsrec_jax.schema import BEYOND
from llmsrec_jax.stages.llm import LLMRec
from llmsrec_jax.stages.work import Work
from llmsrec_jax.writer import Writer, read_log
from tests.factories import files, random_dataset
from tests.systems import records, tiny

PACKAGE = Path(pipeline.__file__).parent
FIELDS = {
    *("model", "dataset", "split", "protocol", "slice", "metric", "value", "se", "users", "seed"),
    *("candidates_hash", "config_hash", "git", "condition", "trained_on"),
}
ABLATION = {"distill.weight": 0.0, "uniformity.weight": 0.0}


def values(rows: list[dict]) -> dict[tuple, tuple]:
    """Everything of the records but the commit."""
    keys = sorted(FIELDS - {"git", "value", "se", "users"})
    return {tuple(r[k] for k in keys): (r["value"], r["se"], r["users"]) for r in rows}


@pytest.fixture
def no_work(monkeypatch):
    """Nothing is loaded, tokenised or trained again."""

    def never(*args, **kwargs):
        raise AssertionError("done again")

    monkeypatch.setattr(train, "fit", never)
    monkeypatch.setattr(sources, "load", never)
    monkeypatch.setattr(ItemTokens, "build", never)


def test_what_a_run_leaves_behind(finished):
    assert sorted(p.name for p in finished.iterdir()) == [
        *(".lock", "candidates", "cases.json", "checkpoints", "config.json", "data", "judged"),
        *("metrics.jsonl", "results.json", "teacher", "tokens", "vectors"),
    ]
    used = config.to_dict(tiny({"llm.dtype": "fp32"}))  # auto, on a CPU
    assert json.loads((finished / "config.json").read_text()) == json.loads(json.dumps(used))
    for stage in ("data", "candidates", "teacher", "tokens", "checkpoints", "vectors", "judged"):
        for folder in (finished / stage).iterdir():
            record = json.loads((folder / "stage.json").read_text())
            assert record["stage"] == stage and record["key"] == folder.name
    for split, users in (("valid", 20), ("test", 40)):
        (file,) = finished.glob(f"candidates/*/candidates_{split}.npz")
        with np.load(file) as stored:
            assert stored["candidates"].shape == (users, 21)
    lines = read_log(finished / "metrics.jsonl")
    assert [(line["stage"], line["step"]) for line in lines] == [
        *(("teacher", 4), ("teacher", 8), ("train", 5), ("train", 10))
    ]
    assert all(math.isfinite(line["loss"]) for line in lines)


def test_results(finished):
    rows = records(finished)
    cfg = tiny()
    assert all(set(row) == FIELDS for row in rows) and len(values(rows)) == len(rows)
    wanted = {
        (model, protocol, f"{name}@{k}")
        for model in ("popularity", "teacher", "llm_srec", "bayes bound")
        for protocol in ("sampled", "full")
        for name in ("hr", "ndcg", "mrr")
        for k in cfg.evaluate.ks
    }
    whole = [row for row in rows if row["slice"] == "all"]
    wanted |= {
        (model, "full", f"{name}@10")
        for model in ("popularity", "teacher", "llm_srec", "bayes bound")
        for name in BEYOND
    }
    assert {(r["model"], r["protocol"], r["metric"]) for r in whole} == wanted
    assert {row["users"] for row in whole} == {40}
    for row in rows:
        share = row["metric"].partition("@")[0] not in ("novelty", "popularity_lift")
        assert math.isfinite(row["value"]) and (not share or 0 <= row["value"] <= 1)
        assert row["se"] is None if row["metric"] == "coverage@10" else math.isfinite(row["se"])
        assert row["users"] > 0
        assert (row["dataset"], row["split"], row["seed"]) == ("tiny", "test", 0)
        assert row["trained_on"] == "tiny"
    assert len({row["candidates_hash"] for row in rows}) == 1
    named = {row["slice"] for row in rows}
    assert named <= {
        *("all", "warm", "cold", "transition", "non_transition"),
        *("head", "tail", "short_history", "long_history"),
    }
    assert len(named) > 6


def test_the_second_run_does_nothing(copy, no_work, capsys):
    before = (copy / "results.json").read_bytes()
    pipeline.run(tiny(), copy)
    assert (copy / "results.json").read_bytes() == before
    assert "ndcg@10 sampled" in capsys.readouterr().out


def test_an_ablation_shares_what_it_can(copy, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("*") if p.is_file()}
    old, fit, stages = records(copy), train.fit, []

    def counted(job, *args):
        stages.append(job.stage)
        return fit(job, *args)

    monkeypatch.setattr(train, "fit", counted)
    pipeline.run(tiny(ABLATION), copy)
    assert stages == ["train"]
    shared = [p for p in before if p.parts[len(copy.parts)] in ("data", "teacher", "tokens")]
    assert len(shared) > 10 and all(p.stat().st_mtime_ns == before[p] for p in shared)
    new = values(records(copy))
    label = "llm_srec w/o distill, uniformity"
    added = [r for r in records(copy) if r["model"] == label]
    assert len(added) == len([r for r in old if r["model"] == "llm_srec"])
    assert len(new) == len(old) + len(added)
    assert values(old).items() <= new.items()
    own = {r["config_hash"] for r in records(copy) if r["model"] == "llm_srec"}
    assert not own & {r["config_hash"] for r in added}
    lines = read_log(copy / "metrics.jsonl")
    assert sum(line["stage"] == "train" for line in lines) == 4


def test_metrics_do_not_depend_on_the_batch(finished, copy, no_work):
    assert tiny().evaluate.batch == 64
    for stage in ("vectors", "judged"):
        shutil.rmtree(copy / stage)
    pipeline.run(tiny({"evaluate.batch": 8}), copy, "evaluate")
    assert values(records(copy)) == values(records(finished))


def test_the_same_seed_gives_the_same_results(finished, tmp_path):
    pipeline.run(tiny(), tmp_path / "again")
    assert values(records(tmp_path / "again")) == values(records(finished))


def test_after_the_first_epoch_only_new_shapes_are_compiled(tmp_path, monkeypatch):
    """Nothing for a validation, a checkpoint after every step, the next learning rate or a line of the log."""
    epochs, log, put = 4, Writer.log, parallel.put_batch
    so_far, shapes = {"teacher": [], "train": []}, set()

    def noted_log(self, stage, *args):
        log(self, stage, *args)
        so_far[stage].append((len(compiled), len(shapes)))

    def noted_put(batch, mesh):
        shapes.add(timing.shapes_of(batch))
        return put(batch, mesh)

    monkeypatch.setattr(Writer, "log", noted_log)
    monkeypatch.setattr(parallel, "put_batch", noted_put)
    changes = {"teacher.epochs": epochs, "teacher.validate_every": 1}
    changes |= {"train.epochs": epochs, "train.validations_per_epoch": 1}
    with timing.compilations() as compiled:
        pipeline.run(tiny({**changes, "train.save_every_s": 0.0}), tmp_path, "train")
    for stage, after in so_far.items():
        (first, seen), (last, seen_last) = after[0], after[-1]
        assert len(after) == epochs and 0 < seen <= first
        assert last - first == seen_last - seen, (stage, compiled[first:last])
    assert seen_last == seen  # LLM-SRec: train.shapes=1


def test_another_seed_gives_others(finished, tmp_path):
    pipeline.run(tiny({"seed": 1}), tmp_path / "other", "teacher")
    ours, theirs = records(finished), records(tmp_path / "other")
    assert {row["model"] for row in theirs} == {"popularity", "teacher", "bayes bound"}
    assert ours[0]["candidates_hash"] != theirs[0]["candidates_hash"]
    pick = lambda rows: [
        r["value"] for r in rows if r["model"] == "teacher" and r["slice"] == "all"
    ]
    assert pick(ours) != pick(theirs)


# files -------------------------------------------------------------------------------------------------------


@pytest.fixture
def ids_only(tmp_path) -> config.Config:
    made = files(random_dataset(users=30, items=60), tmp_path)
    return tiny(
        {
            "data.source": "files",
            "data.files.interactions": made["interactions"],
            "evaluate.negatives": 20,
            "evaluate.max_users": 0,
        }
    )


def test_a_teacher_needs_no_titles(ids_only, tmp_path):
    pipeline.run(ids_only, tmp_path / "run", "teacher")
    rows = records(tmp_path / "run")
    assert {row["model"] for row in rows} == {"popularity", "teacher"}
    assert {row["users"] for row in rows if row["slice"] == "all"} == {30}


@pytest.mark.parametrize("mode", ["run", "train"])
def test_missing_titles_are_found_before_the_teacher_trains(ids_only, tmp_path, mode):
    with pytest.raises(ValueError, match=r"has none: set data.files.items .* --mode=teacher"):
        pipeline.run(ids_only, tmp_path / "run", mode)
    assert not (tmp_path / "run" / "teacher").exists()


def test_seeds_ranked_among_other_candidates_are_no_seeds_of_one_system(tmp_path):
    """Popularity knows nothing of how many there are; what it is worth depends on it."""
    for seed, negatives in ((0, 20), (1, 30)):
        pipeline.run(tiny({"seed": seed, "evaluate.negatives": negatives}), tmp_path, "teacher")
    used = results.settings(tmp_path / "results.json")
    rows = [row | {"settings": used[row["config_hash"]]} for row in records(tmp_path)]
    each = systems.systems(row for row in rows if row["model"] == "popularity")
    assert [*each] == [f"popularity (evaluate.negatives={n})" for n in (20, 30)]


def test_results_of_another_schema_are_found_before_anything_is_made(tmp_path):
    (tmp_path / "results.json").write_text('{"schema": 9, "records": []}')
    with pytest.raises(ValueError, match="results.json: schema 9, this version reads 1: move"):
        pipeline.run(tiny(), tmp_path, "prepare")
    assert not (tmp_path / "data").exists()


def test_an_uneven_batch_is_found_before_the_teacher_trains(tmp_path):
    with pytest.raises(ValueError, match="train.batch=7 does not divide over 2 devices"):
        pipeline.run(tiny({"train.batch": 7, "mesh.devices": 2}), tmp_path / "run")
    assert not (tmp_path / "run" / "teacher").exists()


def test_a_backbone_that_cannot_be_cut_is_found_before_the_teacher_trains(tmp_path):
    with pytest.raises(ValueError, match="mesh.tensor=4: must divide the key and value heads"):
        pipeline.run(tiny({"mesh.devices": 4, "mesh.tensor": 4}), tmp_path / "run")
    assert not (tmp_path / "run" / "teacher").exists()


@pytest.mark.parametrize(
    ("gib", "reason"),
    [
        (0.001, "the teacher's training does not fit: memory per device: .*MiB of 1.02"),
        (0.006, "^training does not fit: memory per device: .*MiB of 6.14"),
    ],
)
def test_what_does_not_fit_is_found_before_the_teacher_trains(gib, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        pipeline.run(tiny({"mesh.memory_gib": gib}), tmp_path / "run")
    assert not (tmp_path / "run" / "teacher").exists()


def test_parts_that_fit_are_found_and_trained_in(copy, capsys, monkeypatch):
    trained = []
    monkeypatch.setattr(Work, "fit", lambda work, stage, job, state: trained.append(job))
    small = {"evaluate.batch": 4}
    run = pipeline.Run(tiny(small), copy, Writer(copy))
    made = run.tokens.builder, run.llm._samples
    job = RetrievalJob.of(run.work.cfg, run.work.keys.backbone, *made, run.work.mesh)
    whole, halves = (job.needs(parts, "recompute").total for parts in (1, 2))
    assert halves < whole
    shutil.rmtree(copy / "checkpoints")
    room = {"mesh.memory_gib": MARGIN * (halves + whole) / 2 / GIB}
    pipeline.run(tiny({**small, **room}), copy, "train")
    assert trained[0].batches.args[0].parts == 2
    assert "train.parts=2, llm.item_store=recompute" in capsys.readouterr().out


def test_an_automatic_store_is_made_for_training_alone(copy):
    """160 item prompts of 138 items are read in training, and every one once after it."""
    cfg = tiny({"llm.item_store": "auto", "llm.dtype": "fp32"})
    run = lambda: pipeline.Run(cfg, copy, Writer(copy)).llm
    assert run().store is None
    shutil.rmtree(copy / "checkpoints")
    untrained = run()
    assert untrained.plan.item_store == "hbm" and untrained.store is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"mesh.devices": 4, "mesh.fsdp": 2, "mesh.tensor": 2},
        {"mesh.devices": 2, "mesh.fsdp": 2, "llm.item_store": "hbm"},
        {"llm.item_store": "host"},
    ],
    ids=["fsdp and tensor", "fsdp, items on the devices", "items on the host"],
)
def test_how_vectors_are_computed_is_in_no_artefact(copy, finished, changes):
    """Encoded anew on other devices, the backbone shared out or items' prefixes at hand, by the same trained model."""
    for folder in (copy / "vectors").iterdir():
        shutil.rmtree(folder)
    pipeline.run(tiny(changes), copy, "evaluate")
    of = lambda folder: [row["value"] for row in records(folder)]
    assert of(copy) == pytest.approx(of(finished), rel=1e-6)


# errors ------------------------------------------------------------------------------------------------------


def test_nothing_to_evaluate_yet(tmp_path):
    with pytest.raises(ValueError, match=f"not trained .* in {tmp_path}.*--mode=train"):
        pipeline.run(tiny(), tmp_path, "evaluate")
    assert not (tmp_path / "data").exists()


def test_a_trained_model_of_other_settings_is_not_evaluated(copy):
    with pytest.raises(ValueError, match="not trained for this configuration"):
        pipeline.run(tiny({"train.lr": 2e-4}), copy, "evaluate")


@pytest.mark.parametrize("kind", ["user", "item"])
def test_a_vector_that_is_no_number_is_named(copy, monkeypatch, kind):
    vectors = LLMRec._vectors

    def broken(self, *args):
        made = vectors(self, *args)
        getattr(made, kind)[3, 1] = np.nan
        return made

    monkeypatch.setattr(LLMRec, "_vectors", broken)
    for stage in ("vectors", "judged"):
        shutil.rmtree(copy / stage)
    with pytest.raises(ValueError, match=rf"llm_srec: the vector of {kind} '\w+\d+' is not finite"):
        pipeline.run(tiny(), copy, "evaluate")


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        *(("data", "dataset.npz"), ("data", "items.jsonl"), ("vectors", "test.npz")),
        *(("judged", "results.json"), ("judged", "cases.json"), ("judged", "stage.json")),
        *(("candidates", "candidates_test.npz"), ("candidates", "stage.json")),
        *(("data", "stage.json"), ("teacher", "stage.json"), ("checkpoints", "stage.json")),
        *(("tokens", "items/ids.npy"), ("tokens", "tokenizer/tokenizer.json")),
    ],
)
def test_a_damaged_artefact_is_named(copy, stage, name):
    folder = next(folder for folder in (copy / stage).iterdir() if (folder / name).exists())
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    made = ("vectors", "judged")  # of what is before them, which is not read once they are there
    for later in made[made.index(stage) + 1 :] if stage in made else made:
        shutil.rmtree(copy / later)
    with pytest.raises(ValueError) as error:
        pipeline.run(tiny(), copy, "evaluate")
    assert str((folder / name).parent) in str(error.value)


# settings ----------------------------------------------------------------------------------------------------


def test_every_setting_is_read():
    """Outside of what defines and checks it, by its own name."""
    read = {
        node.attr
        for path in PACKAGE.rglob("*.py")
        if path.name not in ("config.py", "rules.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    unread = [
        name
        for name, _, _ in config.flatten(config.Config())
        if name.rpartition(".")[2] not in read
    ]
    assert unread == []


def test_every_setting_is_in_a_key_or_changes_no_number():
    """A stage made with other settings is never taken for this one's."""
    keyed = config.subset(config.Config(), (*keys.PERMUTED, *keys.TRANSFERRED))
    free = {name for name, _, _ in config.flatten(config.Config())} - set(keyed)
    assert free == {
        *("llm.remat", "train.length_groups", "train.shapes", "train.parts", "llm.item_store"),
        *("mesh.devices", "mesh.mode", "mesh.fsdp", "mesh.tensor", "mesh.memory_gib"),
        *("train.save_every_s", "evaluate.batch", "evaluate.shapes", "evaluate.show_users"),
        # of the evaluation, which is always done anew; and of a teacher that is chosen by full ranking
        *("evaluate.ks", "evaluate.mask_seen"),
        "order.permutations",  # each has a stage
        *("slices.transition_share", "slices.item_share", "slices.ties"),  # of the evaluation too
        *("order.vector", "evaluate.neighbours"),  # both are kept; they only stand beside
    }


@pytest.mark.parametrize(
    ("changes", "anew"),
    [
        ({"slices.ties": "row"}, {"judged"}),
        ({"slices.item_share": 0.2}, {"judged"}),
        ({"slices.transition_share": 0.2}, {"judged"}),
        ({"transfer.known": "none"}, {"judged", "transferred"}),
        ({"order.vector": "hidden"}, set()),  # both are kept
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_what_the_paper_leaves_open_is_decided_anew(tmp_path, changes, anew):
    """Where it changes what is kept; and nothing is trained or encoded again at home."""
    of = {"judged": keys.JUDGED_ELSEWHERE, "transferred": keys.TRANSFERRED, "vectors": keys.VECTORS}
    made = [
        {name: run.work.stage(name, fields).key for name, fields in of.items()}
        for run in (pipeline.Run(tiny(c), tmp_path, Writer(tmp_path)) for c in ({}, changes))
    ]
    assert {name for name in of if made[0][name] != made[1][name]} == anew


def test_more_test_users_train_nothing_again(copy, monkeypatch):
    monkeypatch.setattr(train, "fit", None)
    pipeline.run(tiny({"evaluate.max_users": 60, "evaluate.ks": (1, 10)}), copy, "evaluate")
    users = {row["users"] for row in records(copy) if row["slice"] == "all"}
    assert users == {40, 60}


@pytest.mark.parametrize("mode", ["w8", "w8a8"])
def test_a_quantised_backbone_has_checkpoints_of_its_own(copy, no_work, mode):
    """And shares data, teacher and tokens."""
    cfg = config.apply(tiny(), {"llm.dtype": "fp32", "llm.quant": mode})
    run = pipeline.Run(cfg, copy, Writer(copy))
    for name, of in (("tokens", keys.TOKENS), ("teacher", keys.TEACHER)):
        assert run.work.stage(name, of).folder in (copy / name).iterdir()
    for name, of in (("checkpoints", keys.TRAIN), ("vectors", keys.VECTORS)):
        assert run.work.stage(name, of).folder not in (copy / name).iterdir()
    up = nnx.merge(*run.llm._backbone).layers["up"][...]
    assert up.values.dtype == np.int8 and up.inputs_too == (mode == "w8a8")


def test_a_file_is_known_by_its_content(tmp_path):
    """Moved, its stages are found again, as with another cache; changed, none of them is used."""
    table = tmp_path / "rows.csv"
    day = 86_400_000 * 20_000
    lines = [f"u{u},i{(u + k) % 40},{day + k}" for u in range(40) for k in range(8)]
    table.write_text("user,item,timestamp\n" + "\n".join(lines) + "\n")
    settings = {
        "data.source": "files",
        "data.files.interactions": str(table),
        "data.shop.users": 2000,
    }
    cfg = config.apply(tiny(), {**settings, "data.shop.items": 400})
    pipeline.run(cfg, tmp_path / "run", "prepare")
    made = set((tmp_path / "run" / "data").iterdir())
    elsewhere = {"data.files.interactions": str(tmp_path / "moved.csv"), "data.cache_dir": "cache"}
    moved = config.apply(cfg, elsewhere)
    table.rename(tmp_path / "moved.csv")
    pipeline.run(moved, tmp_path / "run", "prepare")
    assert set((tmp_path / "run" / "data").iterdir()) == made
    with (tmp_path / "moved.csv").open("a") as file:
        file.write("u0,i39,9\n")
    pipeline.run(moved, tmp_path / "run", "prepare")
    assert len(set((tmp_path / "run" / "data").iterdir()) - made) == 1


def test_a_backbone_is_known_by_its_content(tmp_path):
    """Moved, it is the same; with other weights or another tokenizer it is not."""
    run = lambda folder: pipeline.Run(
        tiny({"llm.path": str(folder), "llm.tokenizer": str(folder)}), tmp_path, Writer(tmp_path)
    )
    shape = {"vocab_size": 8, "hidden_size": 4, "num_attention_heads": 1, "intermediate_size": 8}
    for name in ("one", "same", "other", "tokenizer"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**shape, "num_hidden_layers": 1}))
        (folder / "model.safetensors").write_bytes(b"weights" if name != "other" else b"changed")
        (folder / "tokenizer.json").write_text("{}" if name != "tokenizer" else "[]")
        (folder / "tokenizer").mkdir()  # some models have one; it is not read
    made = {
        name: run(tmp_path / name).work.stage("checkpoints", keys.TRAIN).key
        for name in ("one", "same", "other", "tokenizer")
    }
    assert made["one"] == made["same"] and len(set(made.values())) == 3
