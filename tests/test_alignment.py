"""A-LLMRec through the stages of a run, with a text encoder so small that its vectors mean nothing."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from llmsrec_jax import loaders, pipeline, train
from llmsrec_jax.data import sources, storage
from llmsrec_jax.models import allmrec
from llmsrec_jax.presets import PRESETS
from llmsrec_jax.text import encoder
from llmsrec_jax.writer import Writer, read_log
from tests.factories import files, random_dataset
from tests.kills import killed
from tests.systems import named, records, relative_error, tiny
from tests.text import folders

SMALL = {"alignment.middle": 6, "alignment.epochs": 2, "llm.dtype": "fp32"}
WIDTHS = {"item": 8, "text": folders.D}  # of the teacher, and of the text encoder


@pytest.fixture(scope="module")
def changes(tmp_path_factory) -> dict:
    """Of the preset, with an encoder that is here."""
    folder = folders.write(tmp_path_factory.mktemp("encoder") / "bert")
    return {**PRESETS["a_llmrec"], **SMALL, "alignment.text": str(folder)}


@pytest.fixture(scope="module")
def done(finished, changes, tmp_path_factory) -> Path:
    """A run of A-LLMRec in the folder of one without; left as it is by every test."""
    workdir = tmp_path_factory.mktemp("runs") / "aligned"
    shutil.copytree(finished, workdir)
    pipeline.run(tiny(changes), workdir)
    return workdir


@pytest.fixture
def again(done, tmp_path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "again"))


def opened(folder: Path, changes: dict) -> pipeline.Run:
    return pipeline.Run(tiny(changes), folder, Writer(folder))


def test_it_stands_beside_the_others(done):
    """On the same data, teacher and tokens; both stages leave a line of their own."""
    names = {row["model"] for row in records(done)}
    assert {"llm_srec", "a_llmrec", "teacher"} <= names
    counts = {"data": 1, "teacher": 1, "tokens": 1, "texts": 1, "alignment": 1, "checkpoints": 2}
    for stage, count in counts.items():
        assert len(list((done / stage).iterdir())) == count, stage
    lines = [line for line in read_log(done / "metrics.jsonl") if line["stage"] == "alignment"]
    assert [line["epoch"] for line in lines] == [1, 2]
    for line in lines:
        assert line["model"] == "a_llmrec, seed 0" and 0 <= line["ndcg@10"] <= 1
        terms = [line[name] for name in ("recommendation", "matching", "item", "text")]
        assert line["loss"] == pytest.approx(np.dot(terms, [1, 1, 0.5, 0.2]), rel=1e-5)


def test_its_name_says_which_text_encoder_it_has(again, changes, capsys):
    """The preset's, or whichever: of one A-LLMRec there is nothing to tell."""
    pipeline.run(tiny(changes), again)
    shown = capsys.readouterr().out
    assert "a_llmrec" in shown and "alignment.text" not in shown


@pytest.mark.slow
def test_titles_of_joint_embeddings(again, changes, monkeypatch):
    """Both projectors train and nothing else; killed and gone on with, as if nothing had happened."""
    words = {**changes, **PRESETS["title"], "train.negatives": 4, "evaluate.negatives": 10}
    pipeline.run(tiny(words), again)
    assert "a_llmrec, title generation" in {row["model"] for row in records(again)}
    run = opened(again, words)
    whole, before = named(run.llm._params), named(run.llm._model[1])
    assert {name.partition(".")[0] for name in whole} == {"item_projector", "user_projector"}
    assert all(np.any(whole[name] != before[name]) for name in whole)
    shutil.rmtree(run.llm._stage.folder)
    with killed(monkeypatch, checkpoints=3):
        pipeline.run(tiny({**words, "train.save_every_s": 0.0}), again, "train")
    pipeline.run(tiny(words), again, "train")
    for name, values in named(opened(again, words).llm._params).items():
        np.testing.assert_array_equal(values, whole[name], name)


def test_what_trains_in_either_stage(done, changes):
    """Stage 1: both autoencoders, all of them, and nothing else. Stage 2: projectors, heads and tokens, and stage 1 no more."""
    run = opened(done, changes)
    before, after = named(run.alignment._model[1]), named(run.alignment._params)
    shapes = {name: array.shape for name, array in after.items()}
    wanted = {}
    for side, width in WIDTHS.items():
        wanted |= {f"{side}.first.kernel": (width, 6), f"{side}.first.bias": (6,)}
        wanted |= {f"{side}.last.kernel": (6, width), f"{side}.last.bias": (width,)}
    assert shapes == wanted
    for name, array in after.items():
        assert np.all(array != before[name]), name
    stage_2 = named(run.llm._params)
    assert stage_2["item_projector.first.kernel"].shape[0] == 6
    assert stage_2["user_projector.first.kernel"].shape[0] == 8
    assert stage_2["cf_user_head.first.kernel"].shape[0] == 8
    assert not [name for name in stage_2 if name.startswith(("item.", "text."))]
    first = named(run.llm._model[1])
    for part in ("item_projector", "user_projector", "user_head", "item_head", "user_out"):
        moved = [np.any(a != first[name]) for name, a in stage_2.items() if name.startswith(part)]
        assert moved and any(moved), part


def test_prompts_hold_the_joint_embeddings(done, changes):
    run = opened(done, changes)
    table, params = np.asarray(run.llm.frozen.cf_items), named(run.alignment._params)
    hidden = run.teacher.items @ params["item.first.kernel"] + params["item.first.bias"]
    assert table.shape == (len(run.teacher.items), 6)
    np.testing.assert_allclose(table, 1 / (1 + np.exp(-hidden)), rtol=1e-5)
    prompts = run.llm._user_prompts(run.data.test_histories(0)).take(np.arange(3))
    assert prompts.cf_user_repr is not None and prompts.cf_user_repr.shape == (3, 8)
    plain = opened(done, {})
    np.testing.assert_array_equal(plain.llm.frozen.cf_items, plain.teacher.items)


def test_titles_are_encoded_once_and_the_cut_ones_are_told(done, changes, tmp_path, capsys):
    run = opened(done, changes)
    titles = run.data.dataset.catalog.titles
    stored = storage.read_arrays(run.alignment._texts_stage.folder / "titles.npz")["vectors"]
    alone = encoder.load(changes["alignment.text"]).encode(titles[5:7])
    assert stored.shape == (len(titles), folders.D) and not stored[0].any()
    np.testing.assert_array_equal(stored[5:7], alone.vectors)
    short = folders.write(tmp_path / "short")
    folders.sentence_transformers(short, None, {"max_seq_length": 4})
    other = opened(tmp_path / "run", {**changes, "alignment.text": str(short)})
    other.data.prepare()
    other.alignment.encode()
    cut = other.alignment._texts_stage.info["cut"]
    assert 0 < cut <= len(titles) - 1
    assert f"{cut} of {len(titles) - 1} titles are longer than it reads" in capsys.readouterr().out


def test_the_second_run_does_nothing(again, changes, monkeypatch):
    for where, name in ((train, "fit"), (sources, "load"), (encoder, "load")):
        monkeypatch.setattr(where, name, lambda *args, **more: pytest.fail("done again"))
    before = (again / "results.json").read_bytes()
    pipeline.run(tiny(changes), again)
    assert (again / "results.json").read_bytes() == before


def test_it_goes_on_where_it_was_killed(again, changes, monkeypatch):
    run = opened(again, changes)
    whole, folder = named(run.alignment._params), run.alignment._stage.folder
    shutil.rmtree(folder)
    often = {**changes, "train.save_every_s": 0.0}
    with killed(monkeypatch, checkpoints=2) as seen:
        pipeline.run(tiny(often), again, "train")
    assert seen == [1, 2] and not (folder / "stage.json").exists()
    pipeline.run(tiny(often), again, "train")
    for name, values in named(opened(again, changes).alignment._params).items():
        np.testing.assert_array_equal(values, whole[name])


@pytest.mark.parametrize(
    "mesh", [{"mesh.devices": 2}, {"mesh.devices": 4, "mesh.mode": "pmap"}], ids=str
)
def test_the_devices_change_no_number(again, done, changes, mesh):
    shutil.rmtree(again / "alignment")
    other = opened(again, {**changes, **mesh})
    other.alignment.train()
    whole, found = (named(each.alignment._params) for each in (opened(done, changes), other))
    for name, values in whole.items():
        assert relative_error(found[name], values) < 1e-4, name


def test_batches(done, changes):
    """Each sample once in an epoch; negatives of no training item, others in the next epoch; on any devices the same."""
    run = opened(done, changes)
    samples = run.alignment._samples
    cf_user_repr = np.arange(len(samples), dtype=np.float32)[:, None]
    whole, shared = (
        loaders.AlignBatches(samples, cf_user_repr, 8, 0, *devices) for devices in ((1,), (4, [2]))
    )
    first = [whole(step) for step in range(whole.order.steps_per_epoch)]
    rows = np.concatenate([batch.cf_user_repr[0, :, 0] for batch in first]).astype(int)
    assert len(set(rows)) == len(rows) == len(samples) // 8 * 8
    items = [
        np.concatenate([getattr(b, name)[0] for b in first]) for name in ("positive", "negative")
    ]
    np.testing.assert_array_equal(items[0], samples.targets[rows])
    for row, negative in zip(rows, items[1], strict=True):
        assert negative > 0 and negative not in samples.dataset.train[samples.users[row]][0]
    later = [whole(step + len(first)) for step in range(len(first))]
    drawn = {int(b.cf_user_repr[0, i, 0]): b.negative[0, i] for b in later for i in range(8)}
    assert sum(drawn.get(row) != negative for row, negative in zip(rows, items[1], strict=True)) > 8
    for mine, every in zip(shared(1), whole(1), strict=True):
        np.testing.assert_array_equal(mine[0], every[0, 4:6])


# another dataset, other settings -----------------------------------------------------------------------------


def test_what_does_not_fit_is_found_before_it_trains(again, changes):
    wide = {**changes, "alignment.middle": 100_000, "mesh.memory_gib": 0.01}
    with pytest.raises(ValueError, match="alignment: training does not fit: .*item vectors .*MiB"):
        pipeline.run(tiny(wide), again, "train")
    assert len(list((again / "alignment").iterdir())) == 1


def test_on_another_dataset_stage_1_reads_what_the_teacher_has_there(again, changes, tmp_path):
    """And none of it trains there."""
    made = files(random_dataset(users=40, items=60), tmp_path)
    there = {f"transfer.files.{name}": path for name, path in made.items()}
    cfg = {**changes, **there, "transfer.name": "there"}
    pipeline.run(tiny(cfg), again)
    assert "a_llmrec from tiny, unseen items random" in {row["model"] for row in records(again)}
    assert len(list((again / "alignment").iterdir())) == 1
    run = opened(again, cfg)
    assert run.transfer is not None
    wanted = run.alignment.items(run.transfer._teacher.items)
    assert wanted.shape == (61, 6)
    np.testing.assert_array_equal(run.transfer._reader.frozen.cf_items, wanted)


def test_an_encoder_is_known_by_what_is_in_its_folder(changes, tmp_path):
    """Moved, it is the same; read or pooled in another way, not."""
    keys = lambda folder: opened(tmp_path, {**changes, "alignment.text": str(folder)})
    key = lambda folder: keys(folder).alignment._stage.key
    moved = Path(shutil.copytree(changes["alignment.text"], tmp_path / "moved"))
    assert key(moved) == key(changes["alignment.text"])
    found = {key(moved)}
    folders.sentence_transformers(moved, {"pooling_mode_mean_tokens": True}, {})
    found.add(key(moved))
    pooling = moved / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True}))
    assert len(found | {key(moved)}) == 3


# bad input ---------------------------------------------------------------------------------------------------


def test_what_is_missing_is_found_before_the_teacher_trains(changes, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "fit", lambda *args: pytest.fail("trained"))
    made = files(random_dataset(users=40, items=60), tmp_path)
    ids = {"data.source": "files", "data.files.interactions": made["interactions"]}
    for more, message in (
        ({"alignment.text": str(tmp_path / "none")}, "no such folder, and none of minilm"),
        ({"alignment.text": str(tmp_path)}, "config.json"),
        ({"mesh.devices": 4, "alignment.batch": 6}, "alignment.batch=6 does not divide over 4"),
        (ids, "reads item titles and this catalogue has none"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline.run(tiny({**changes, **more}), tmp_path / "run")
    with pytest.raises(ValueError, match="alignment.text=nowhere: no such folder"):
        pipeline.run(tiny({**changes, "alignment.text": "nowhere"}), tmp_path / "run", "evaluate")


def test_an_encoder_of_another_width_than_the_checkpoint(again, changes):
    """Vectors of titles that were put in place of others."""
    run = opened(again, changes)
    stage = run.alignment._texts_stage
    file = stage.folder / "stage.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record).replace(f'"width": {folders.D}', '"width": 7'))
    with pytest.raises(
        ValueError, match=r"text.first.kernel.* is .*12, 6.*expected .*7, 6.*start this stage over"
    ):
        run.llm.frozen  # noqa: B018 (asking for it loads stage 1)
    shutil.rmtree(again / "alignment")
    with pytest.raises(
        ValueError, match="text encoder gives vectors of width 12, .* is of width 7"
    ):
        opened(again, changes).alignment.train()


def test_a_teacher_of_another_catalogue(again, changes, monkeypatch):
    run = opened(again, changes)
    with pytest.raises(ValueError, match="the teacher gives vectors of width 9, .* of width 8"):
        run.alignment.items(np.zeros((5, 9), np.float32))
    size = run.data.dataset.catalog.size
    shutil.rmtree(again / "alignment")
    monkeypatch.setattr(type(run.teacher), "items", np.zeros((5, 8), np.float32))
    with pytest.raises(ValueError, match=f"of {size} texts, but the teacher has 5 items"):
        opened(again, changes).alignment.train()


def test_what_the_step_trains_is_the_loss(done, changes):
    """Its gradient is that of the global batch."""
    run = opened(done, changes)
    model, state = run.alignment._model
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    frozen = allmrec.Frozen(draw(9, 8), draw(9, folders.D))
    batch = (draw(4, 8), *(rng.integers(1, 9, 4).astype(np.int32) for _ in range(2)))
    batch = loaders.AlignBatch(*batch)
    cfg = tiny({**changes, "alignment.item_weight": 2.0, "alignment.text_weight": 3.0})
    start = train.init_state(state, 0.1, 0.5)
    after, terms = train.align_step(frozen, start, batch, model=model, cfg=cfg)
    parts = [float(terms[name]) for name in ("recommendation", "matching", "item", "text")]
    assert float(terms["loss"]) == pytest.approx(np.dot(parts, [1, 1, 2, 3]), rel=1e-5)
    # Adam's first step is the learning rate, against the gradient
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after.params), strict=True):
        np.testing.assert_allclose(np.abs(new - old), 0.1, rtol=1e-2)
