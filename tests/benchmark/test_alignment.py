"""A-LLMRec's stage 1 is timed over an epoch of all users, with vectors as wide as the text encoder's."""

from llmsrec_jax import config
from llmsrec_jax.benchmark import alignment, made, report, stages, work
from llmsrec_jax.benchmark.system import System
from tests.benchmark.conftest import small
from tests.text import folders


def test_an_epoch_of_stage_1(tmp_path, bench):
    joint = {"alignment.text": str(folders.write(tmp_path / "bert")), "alignment.batch": 8}
    cfg = config.apply(small(), {**joint, "alignment.middle": 6})
    system = System(cfg, made.shape(cfg.data))
    one = stages.Bench(system, repeats=2, say=print, results={"peak": {"flops_per_s": bench.peak}})
    found = alignment.alignment(one)
    users = len(system.made.dataset.eligible("train"))
    assert found["steps_per_epoch"] == users // 8 and found["minutes_per_epoch"].median > 0
    # three passes over weights of 6 x (8 + 12), there and back, of two items; two operations each
    assert found["useful_flops"] == users // 8 * 8 * (3 * 2 * 2 * 2 * 6 * (8 + 12))
    assert work.aligned(cfg, folders.D, 8).rows == 8
    where = {**dict.fromkeys(("backbone", "dtype", "quant", "devices", "device", "date"), "")}
    where |= {
        "cores": 1,
        "python": "",
        "packages": {},
        "data": "",
        "sizes": {"users": 1, "items": 1},
    }
    told = {"environment": where, "peak": {"flops_per_s": 1.0, "dtype": "", "size": 1}}
    assert "A-LLMRec's stage 1, an epoch" in report.markdown(
        report.plain(told | {"alignment": found})
    )
