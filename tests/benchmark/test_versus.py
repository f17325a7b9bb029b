"""PyTorch does the same job: equal losses and vectors on equal weights; where they differ, no time is shown."""

from dataclasses import replace

import numpy as np
import pytest

from llmsrec_jax import config
from llmsrec_jax.benchmark import measure, versus
from llmsrec_jax.benchmark.measure import Options
from llmsrec_jax.benchmark.stages import Bench
from llmsrec_jax.benchmark.versus import Disagreement, agree

OURS = [2.0, 1.0]


def test_agreement():
    agree("losses", {"ours": OURS, "other": [2.0 + 1e-4, 1.0]})
    for other in ([2.0, 1.0 + 4e-4], [2.0, np.nan]):
        with pytest.raises(Disagreement, match="losses of other and ours differ by .*no time"):
            agree("losses", {"ours": OURS, "other": other})


def test_other_weights_are_refused_before_any_time(bench, monkeypatch):
    def no_time(*args, **kwargs):
        raise AssertionError("timed")

    honest = versus._ours

    def with_other_weights(system, llama, build):
        is_padded = llama != system.llama_graph
        cfg = config.apply(system.cfg, {"seed": 1}) if is_padded else system.cfg
        return honest(replace(system, cfg=cfg), llama, build)

    monkeypatch.setattr(versus, "_ours", with_other_weights)
    monkeypatch.setattr(versus.timing, "rounds", no_time)
    with pytest.raises(Disagreement, match="losses of padded and ours differ"):
        versus.train(bench, ("padded",), 1)


def test_one_device_only(bench, tmp_path):
    cfg = config.apply(bench.system.cfg, {"mesh.devices": 2})
    with pytest.raises(ValueError, match="mesh.devices=1"):
        measure.run(cfg, tmp_path, Options(("train",), ("padded",), 1, 1))


@pytest.fixture(scope="module")
def torch_llm():
    pytest.importorskip("torch")
    from llmsrec_jax.benchmark import torch_llm

    # its compiler takes longer than all else here
    torch_llm.torch.compile, before = None, torch_llm.torch.compile
    yield torch_llm
    torch_llm.torch.compile = before


@pytest.mark.torch
def test_training(bench, torch_llm):
    """Two steps: the second loss agrees only if every gradient did."""
    found = versus.train(bench, ("padded", "torch"), 2)
    assert set(found["losses"]) == {"ours", "padded", "torch field", "torch strong"}
    assert len(found["losses"]["torch field"]) == 2
    assert set(found["times_faster"]) == set(found["losses"]) - {"ours"}
    assert found["seconds"]["ours"].min > 0


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["users", "items"])
def test_encoding(bench, torch_llm, kind):
    found = versus.encode(bench, kind)
    assert found["prompts"] == len(bench.task.prompts(kind)) and found["sampled_by_torch"] == 8
    assert set(found["times_faster"]) == {"torch field", "torch strong"}


@pytest.mark.torch
def test_teacher(bench, torch_llm):
    found = versus.teacher(bench)
    np.testing.assert_allclose(*found["losses"].values(), rtol=1e-4)
    assert found["times_faster"]["torch"].min > 0


@pytest.mark.torch
def test_agreement_is_shown_in_float32_where_less_is_measured(bench, torch_llm, monkeypatch):
    monkeypatch.delitem(versus.CHECKED, "llm.remat")  # as in the other tests: compiled already
    cfg = config.apply(bench.system.cfg, {"llm.dtype": "bf16"})
    half = Bench(replace(bench.system, cfg=cfg), 1, print)
    losses = versus._check_losses(half, ("torch",))
    np.testing.assert_allclose(losses["torch strong"], losses["ours"], rtol=1e-4)
    assert half.system.dtype != np.float32 and len(losses["ours"]) == 2
