"""Title generation end to end, in miniature: train, read, judge, other orders, resume."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmsrec_jax import config, pipeline, reproduce, results, rules
from llmsrec_jax.batch import NOTHING
from llmsrec_jax.checkpoint import read_json
from llmsrec_jax.data import orders
from llmsrec_jax.keys import TRAIN, Keys
from llmsrec_jax.memory import GIB, MARGIN
from llmsrec_jax.presets import PRESETS
from llmsrec_jax.stages import titles
from llmsrec_jax.stages.titles import TitleRec
from llmsrec_jax.stages.work import Work
from llmsrec_jax.writer import Writer
from tests.factories import files, random_dataset
from tests.systems import move_only_the_first, named, records, tiny

TITLE = {
    **PRESETS["tallrec"],
    **PRESETS["title"],
    "lora.dropout": 0.0,
    "train.negatives": 4,
    "evaluate.negatives": 10,
    "order.permutations": 1,
    "llm.dtype": "fp32",
}
LABEL = "tallrec, title generation"


def settings(**changes: Any) -> config.Config:
    return tiny({**TITLE, **{name.replace("__", "."): value for name, value in changes.items()}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("titles")
    pipeline.run(settings(), folder)
    return folder


def test_what_does_not_fit_is_found_before_the_teacher_trains(tmp_path):
    with pytest.raises(
        ValueError, match="^training does not fit: memory per device: .*MiB of 10.2"
    ):
        pipeline.run(settings(mesh__memory_gib=0.01), tmp_path)
    assert (tmp_path / "tokens").exists() and not (tmp_path / "teacher").exists()


def test_parts_that_fit_are_found_and_trained_in(folder, tmp_path, monkeypatch, capsys):
    trained, copy = [], tmp_path / "copy"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "checkpoints")
    monkeypatch.setattr(Work, "fit", lambda work, stage, job, state: trained.append(job))
    small = {"evaluate__batch": 1}
    job = opened(copy, **small).llm._job
    whole, halves = (job.needs(parts, "recompute").total for parts in (1, 2))
    assert halves < whole
    room = MARGIN * (halves + whole) / 2 / GIB
    pipeline.run(settings(**small, mesh__memory_gib=room), copy, "train")
    assert trained[0].batches.args[0].parts == 2
    assert "train.parts=2" in capsys.readouterr().out


def opened(folder: Path, **changes: Any) -> pipeline.Run:
    return pipeline.Run(settings(**changes), folder, Writer(folder, silent=True))


def test_what_is_said_of_a_run(folder, capsys):
    """Candidates are ranked, nothing else is; what is written is told besides; another order changes the numbers."""
    own = [row for row in records(folder) if row["model"] == LABEL]
    assert {row["protocol"] for row in own} == {"sampled", "greedy decoding"}
    found = {(row["condition"], row["metric"]): row for row in own if row["slice"] == "all"}
    assert found["original", "hr@1"]["users"] == 40
    assert {name for condition, name in found if condition == "original"} >= {
        "valid@1",
        "hr_constrained@1",
    }
    assert "change" in found["shuffled", "ndcg@10"]
    others = {row["protocol"] for row in records(folder) if row["model"] == "teacher"}
    assert others == {"sampled", "full", "user vectors"}
    pipeline.run(settings(), folder)  # only shows
    shown = capsys.readouterr().out
    assert "one of the candidates, and what greedy decoding writes" in shown and LABEL in shown


def test_what_is_counted_of_answers(folder, tmp_path, monkeypatch):
    """Three users write a candidate's title, two of them the target's (one beside an equal title); the others write none."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for stage in ("titles", "judged"):
        shutil.rmtree(copy / stage)

    def read(self, params, asked, title):
        written = np.zeros(asked.shown.shape, bool)
        written[[0, 1, 1, 2], [0, 0, 3, 5]] = True
        score = np.arange(written.size).reshape(written.shape) / written.size
        return {"score": score, "constrained": np.eye(*written.shape) > 0, "free": written}

    monkeypatch.setattr(TitleRec, "_read", read)
    pipeline.run(settings(order__permutations=0), copy, "evaluate")
    own = [row for row in records(copy) if (row["model"], row["slice"]) == (LABEL, "all")]
    found = {row["metric"]: (row["value"], row["users"]) for row in own}
    assert found["valid@1"] == (pytest.approx(3 / 40), 40)
    assert found["hr_free@1"] == (pytest.approx(1.5 / 40), 40)
    assert found["hr_of_valid@1"] == (pytest.approx(1.5 / 3), 3)
    assert found["hr_constrained@1"] == (pytest.approx(1 / 40), 40)
    assert found["hr@1"] == (0.0, 40)  # the target's likelihood is the lowest


def read_by(run: pipeline.Run, think):
    """`evaluate.encode` with a reader in the LLM's place: think(row, tokens of a title) -> log-probability of each of them.

    It sees what prompts ask for, and not which candidate a title is. What it is sure of is what greedy decoding writes.
    """
    ids, length = run.tokens.titles.tokens(np.arange(1, 3))
    end = ids[0, length[0] - 1]
    assert end == ids[1, length[1] - 1]

    def encode(batches, encoder, frozen, params, mesh, rows, advance, kept):
        found: dict[int, np.ndarray] = {}
        for (index,), batch in batches:
            width = batch.asked.at[0].shape[-1]
            for row, tokens in zip(index, batch.asked.token.reshape(-1, width), strict=True):
                asked = tokens[tokens != NOTHING]
                titles = np.split(asked, np.flatnonzero(asked == end)[:-1] + 1)
                thought = np.concatenate([think(row, tuple(title)) for title in titles])
                pairs = np.zeros((1, width, 2), np.float32)
                pairs[0, : len(asked)] = np.stack([thought, thought == 0], axis=1)
                found[row] = kept(np.array([row]), pairs.reshape(1, -1))[0]
        return np.stack([found[row] for row in range(rows)])

    return SimpleNamespace(encode=encode)


def test_a_reader_that_knows_is_always_right_and_one_that_guesses_is_not(
    folder, tmp_path, monkeypatch
):
    """Through the prompts' order and back: 1 for the first, 1 in 11 for the other one."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for stage in ("titles", "judged"):
        shutil.rmtree(copy / stage)
    run = opened(copy)
    users, candidates = run.data.candidates("test")
    ids, length = run.tokens.titles.tokens(candidates[:, :1])
    title = [tuple(one[0, :n]) for one, n in zip(ids, length[:, 0], strict=True)]
    knows = lambda row, tokens: np.full(len(tokens), 0.0 if tokens == title[row] else -1.0)
    monkeypatch.setattr(titles, "evaluate", read_by(run, knows))
    pipeline.run(settings(order__permutations=0), copy, "evaluate")
    own = [row for row in records(copy) if (row["model"], row["slice"]) == (LABEL, "all")]
    found = {row["metric"]: row["value"] for row in own}
    for metric in ("hr@1", "ndcg@10", "valid@1", "hr_free@1", "hr_of_valid@1", "hr_constrained@1"):
        assert found[metric] == 1.0, metric
    rng, asked = np.random.default_rng(0), run.llm._ask("test", users, *asked_of(run))
    guesses = lambda row, tokens: np.full(len(tokens), -rng.random() / len(tokens))
    monkeypatch.setattr(titles, "evaluate", read_by(run, guesses))
    right = [run.llm._read(None, asked, "test")["score"].argmax(axis=1) == 0 for _ in range(30)]
    share, users = np.mean(right), np.size(right)
    assert abs(share - 1 / 11) < 3 * (1 / 11 * 10 / 11 / users) ** 0.5


def asked_of(run: pipeline.Run):
    return run.data.test_histories(0), run.data.candidates("test")[1]


def test_candidates_are_shown_in_an_order_of_each_user(folder):
    """The same every time; where the target stands tells nothing."""
    run = opened(folder)
    users, candidates = run.data.candidates("test")
    shown, again = (run.llm._ask("test", users, *asked_of(run)).shown for _ in range(2))
    np.testing.assert_array_equal(shown, again)
    np.testing.assert_array_equal(np.sort(shown), np.sort(candidates))
    places = (shown == candidates[:, :1]).argmax(axis=1)
    assert len(set(places)) > 5 and abs(places.mean() - 5) < 3 * (10 / len(places)) ** 0.5


def test_only_lora_trains(folder):
    run = opened(folder)
    before, after = named(run.llm._model[1]), named(run.llm._params)
    assert {name.partition(".")[0] for name in after} == {"lora"}
    assert all(np.any(before[name] != after[name]) for name in after)


def test_scores_do_not_depend_on_the_batch(folder, tmp_path):
    """Nor on how many shapes there are."""
    run, found = opened(folder), opened(folder).llm.judged().scores.scores
    again = opened(folder, evaluate__batch=7, evaluate__shapes=3)
    users, candidates = run.data.candidates("test")
    histories = run.data.test_histories(0)
    asked = again.llm._ask("test", users, histories, candidates)
    read = again.llm._read(again.llm._params, asked, "test")
    np.testing.assert_allclose(read["score"], found, rtol=1e-4, atol=1e-3)
    some = np.array([5, 3])
    asked = run.llm._ask("test", users[some], histories.take(some), candidates[some])
    two = run.llm._read(run.llm._params, asked, "test")
    np.testing.assert_allclose(two["score"], found[some], rtol=1e-4, atol=1e-3)


def test_histories_that_stay_keep_their_scores(folder, tmp_path, monkeypatch):
    """Another batch reads them beside those that move: the identity changes nothing."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    move_only_the_first(monkeypatch)
    again = settings(order__scope="window")  # an order that is not stored yet
    pipeline.run(again, copy, "evaluate")
    judged = opened(copy, order__scope="window").llm.judged()
    (other,) = judged.permuted
    np.testing.assert_array_equal(other.scores[1:], judged.scores.scores[1:])
    assert (other.scores[0] != judged.scores.scores[0]).any()


def test_equal_titles_tie(tmp_path):
    """And histories that another order leaves as they were keep their scores, to the bit."""
    made = random_dataset(users=30, items=40)
    titles = [title if i % 4 else "the same" for i, title in enumerate(made.catalog.titles)]
    made = replace(made, catalog=replace(made.catalog, titles=titles))
    paths = {f"data.files.{name}": path for name, path in files(made, tmp_path / "in").items()}
    source = {"data.source": "files", "data.files.time_unit": "ms", "data.name": "made"}
    cfg = tiny({**TITLE, **source, **paths, "evaluate.negatives": 12, "train.batch": 4})
    pipeline.run(cfg, tmp_path / "run")
    run = pipeline.Run(
        pipeline.settled(cfg), tmp_path / "run", Writer(tmp_path / "run", silent=True)
    )
    (_, candidates), judged = run.data.candidates("test"), run.llm.judged()
    scores, same = judged.scores.scores, run.tokens.titles.same[candidates]
    pairs = np.triu(same[:, :, None] == same[:, None], 1)
    assert pairs.sum() > 30
    for found in (scores, judged.permuted[0].scores):
        assert (found[:, :, None] == found[:, None])[pairs].all()
    still = ~orders.changed(*(run.data.test_histories(n) for n in (0, 1)))
    np.testing.assert_array_equal(scores[still], judged.permuted[0].scores[still])


def test_what_is_not_read_is_in_no_key():
    key = lambda **changes: Keys(settings(**changes))(TRAIN)
    assert key() == key(head__hidden=99, distill__type="contrastive", evaluate__score="cosine")
    assert key() != key(prompts__title_tokens=9)


def test_collms_first_run_has_no_curriculum():
    plain = config.preset(config.Config(), "collm,title")
    assert config.before(config.apply(plain, {"train.curriculum": True})) == config.before(plain)


def test_experiments_start_from_retrieval(tmp_path):
    with pytest.raises(ValueError, match="start from a configuration without prompts.task=title"):
        cfg = tiny({**PRESETS["title"], "evaluate.negatives": 20})
        reproduce.run(cfg, tmp_path, "table6", (0,), dry_run=True)


@pytest.mark.slow
def test_table_4(tmp_path):
    """Those who write titles beside SASRec, on the same 20 candidates; what only they are asked is not told of SASRec."""
    reproduce.run(tiny({"order.permutations": 0}), tmp_path, "table4", (0,), rows="SASRec,TALLRec")
    cells = read_json(tmp_path / "experiments" / "table4.json")["cells"]
    found = {(cell["row"], cell["column"]): cell for cell in cells}
    for column in ("original", "shuffled training"):
        for row in ("SASRec", "TALLRec"):
            assert 0 <= found[row, column]["mean"] <= 1
    assert 0 <= found["TALLRec", "valid answers"]["mean"] <= 1
    assert ("SASRec", "valid answers") not in found
    assert found["LLaRA", "original"]["mean"] is None


@pytest.mark.slow
def test_collm_writes_titles_after_lora_on_titles_alone(tmp_path):
    """Two trainings of one task; the second one's projectors stand around a backbone that the first one has changed."""
    changes = {**PRESETS["collm"], "prompts.item_repr": True}
    cfg = tiny({**TITLE, **changes, "order.permutations": 0})
    pipeline.run(cfg, tmp_path)
    run = pipeline.Run(cfg, tmp_path, Writer(tmp_path, silent=True))
    assert run.before is not None and not run.before.work.cfg.prompts.retrieves
    own, first = named(run.llm._params), named(run.before.llm._params)
    assert {name.partition(".")[0] for name in own} == {"item_projector", "user_projector"}
    assert {name.partition(".")[0] for name in first} == {"lora"}
    plain = named(opened(tmp_path).llm._backbone[1])
    changed = {name for name, x in named(run.llm._backbone[1]).items() if np.any(x != plain[name])}
    assert changed == {"layers.q", "layers.v"}
    assert "collm, title generation" in {row["model"] for row in records(tmp_path)}


@pytest.mark.parametrize("words", ["llara", "collm", "a_llmrec"])
def test_systems_are_rows(words):
    """Every baseline's words and `title` make a configuration that is legal, with a name of its own."""
    cfg = config.preset(config.Config(), f"{words},title")
    rules.validate(cfg)
    assert results.label(cfg) == f"{words}, title generation"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"distill.weight": 1.0}, r"distill\.weight=1\.0: prompts\.task=title has no vectors"),
        ({"uniformity.weight": 0.5}, r"uniformity\.weight=0\.5: prompts\.task=title"),
        ({"lora.rank": 0}, "lora"),
        ({"llm.item_store": "host"}, "item_store=host"),
        ({"train.exclude": "history"}, "train.exclude=history .* list it twice"),
        ({"transfer.category": "All_Beauty"}, "transfer: prompts.task=title"),
        ({"prompts.title_tokens": 0}, "prompts.title_tokens=0: must be at least 1"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        rules.validate(tiny({**TITLE, **changes}))


def test_of_a_frozen_backbone():
    """Titles alone train nothing then; and there are no item prompts to keep."""
    plain = {name: value for name, value in TITLE.items() if not name.startswith("lora.")}
    with pytest.raises(ValueError, match="item_store=host.* no item prompts"):
        rules.validate(tiny({**plain, "prompts.item_repr": True, "llm.item_store": "host"}))
    with pytest.raises(ValueError, match="titles alone trains nothing: give a lora.rank"):
        rules.validate(tiny({**plain, "prompts.item_repr": False}))
