"""What a plan chooses, what it refuses, and that its advice holds."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llmsrec_jax import config, memory, memory_plan, parallel
from llmsrec_jax.llama import config as llama_config
from llmsrec_jax.memory import GIB, MARGIN, RetrievalJob
from llmsrec_jax.memory_plan import Plan
from llmsrec_jax.prompts.trunks import Trunks

MESH = parallel.make_mesh(config.Mesh(devices=1))


@pytest.fixture(scope="module")
def job() -> RetrievalJob:
    """A 1B backbone; one user in a thousand has a long prompt. 40 items, read 2400 times."""
    changes = {"train.batch": 8, "train.negatives": 2, "train.length_groups": 2, "train.shapes": 4}
    changes |= {"llm.dtype": "bf16", "llm.item_store": "auto", "evaluate.batch": 8}
    cfg, rng = config.apply(config.Config(), changes), np.random.default_rng(0)
    users = np.full(1000, 30), np.append(rng.integers(100, 200, 999), 900)
    items = rng.integers(20, 60, 40), np.full(40, 10)
    llama, users = llama_config.size("llama-3.2-1b"), Trunks.apart(users)
    return RetrievalJob(cfg, llama, 1, 8, 100, users, items)


def choose(job: RetrievalJob, size: float, **changes: Any) -> Plan:
    """On a device with `size` bytes and the margin."""
    limit = MARGIN * size / GIB
    settings = {name.replace("__", "."): value for name, value in changes.items()}
    return memory_plan.choose(job.changed({**settings, "mesh.memory_gib": limit}), MESH)


def test_as_few_parts_as_fit(job):
    job = job.changed({"llm.item_store": "recompute"})
    totals = {parts: job.needs(parts, "recompute").total for parts in (1, 2, 4, 8)}
    assert totals[1] > totals[2] > totals[4]
    for parts in (1, 2, 4):
        plan = choose(job, totals[parts] + 1)
        assert (plan.parts, plan.needs.total, plan.fits) == (parts, totals[parts], True)
        plan.require()
        assert plan.apply(job.cfg).train.parts == parts
    assert not choose(job, totals[2] + 1, train__parts=1).fits
    assert choose(job, totals[1] + 1, train__parts=4).parts == 4


def test_a_store_where_even_the_longest_prompts_fit(job, monkeypatch):
    monkeypatch.setattr(memory, "host_memory", lambda: 1 << 50)
    assert choose(job, 1 << 50).item_store == "hbm"
    assert choose(job, job.worst(1, "hbm") + 1).item_store == "hbm"
    needs = job.worst(1, "host")
    assert job.worst(1, "hbm") > needs + 1
    assert choose(job, needs + 1).item_store == "host"
    monkeypatch.setattr(memory, "host_memory", lambda: job.prefixes)  # more than its share
    assert choose(job, needs + 1).item_store == "recompute"


def test_no_store_for_prefixes_that_are_hardly_read(job):
    assert choose(replace(job, steps=0), 1 << 50).item_store == "recompute"
    thirds = config.apply(job.cfg, {"train.parts": 3})
    encodes = replace(job, steps=0, devices=16 * job.batch, cfg=thirds)
    assert memory_plan.choose(encodes, MESH).parts == 1  # vectors are made in no parts
    assert choose(job, 1 << 50, mesh__tensor=2).item_store == "recompute"


def test_no_store_while_lora_changes_all_keys(job, monkeypatch):
    monkeypatch.setattr(memory, "host_memory", lambda: 1 << 50)
    assert choose(job, 1 << 50, lora__rank=8).item_store == "recompute"


def test_rounded_prefixes_are_never_made_again(job, monkeypatch):
    """Vectors would be other ones."""
    monkeypatch.setattr(memory, "host_memory", lambda: 1 << 50)
    rounded = {"llm__item_store_dtype": "int8"}
    assert choose(replace(job, steps=0), 1 << 50, **rounded).item_store == "hbm"
    plan = choose(job, 1, **rounded)
    assert not plan.fits and plan.item_store != "recompute"


def test_nothing_is_known_of_the_memory(job, monkeypatch):
    monkeypatch.setattr(memory, "host_memory", lambda: None)
    monkeypatch.setattr(memory, "available", lambda *args: None)
    plan = memory_plan.choose(job, MESH)
    assert (plan.parts, plan.item_store, plan.limit) == (1, "recompute", None)
    plan.require()


def test_a_refusal_says_what_would_fit(job):
    """Every line of advice, followed, is a plan that fits."""
    fixed = {"train.parts": 1, "llm.item_store": "hbm", "train.length_groups": 1}
    job = job.changed(fixed)
    size = 0.8 * job.needs(1, "hbm").total
    plan = choose(job, size)
    with pytest.raises(ValueError) as error:
        plan.require()
    first, *lines = str(error.value).splitlines()
    assert re.match(
        r"training does not fit: memory per device: [\d.]+ GiB of [\d.]+ GiB \(wei", first
    )
    assert 1 < len(lines) <= memory_plan.LINES
    for line in lines:
        flags = dict(re.findall(r"--config\.([\w.]+)=(\w+)", line))
        typed = {name: int(value) if value.isdigit() else value for name, value in flags.items()}
        followed = choose(job.changed(typed), size)
        assert followed.fits, line
        asked = "other results" in line
        assert asked == bool({"llm.quant", "train.batch"} & flags.keys())
        assert ("on 2 devices" in line) == (typed.get("mesh.fsdp") == 2)


def test_where_nothing_fits(job):
    plan = choose(job, 1 << 20)
    (line,) = plan.advice
    needed, unit = re.findall(r"devices with ([\d.]+) (MiB|GiB) free", line)[0]
    needed = float(needed) * {"MiB": GIB / 1024, "GiB": GIB}[unit]
    eighth = job.changed({"llm.item_store": "recompute", "mesh.fsdp": 8, "llm.quant": "w8"})
    assert 0.2 < needed / (MARGIN * eighth.needs(1, "recompute").total) < 1.01


def test_the_report(job):
    roomy = choose(job, 1 << 40, llm__item_store="recompute")
    assert re.fullmatch(
        r"memory per device: [\d.]+ GiB of [\d.e+]+ GiB \(weights 2\.3 GiB, item vectors .*, trainables and Adam .*\); "
        "train.parts=1, llm.item_store=recompute",
        roomy.report(),
    )
    tight = choose(job, roomy.needs.total + 1, llm__item_store="recompute")
    assert tight.fits and "a step of only the longest prompts" in tight.report()


def test_parts_that_do_not_divide_the_users(job):
    with pytest.raises(ValueError, match="train.parts=3 does not divide the 8 users"):
        choose(job, 1 << 50, train__parts=3)


def test_prompts_without_any_prefix(job):
    """A tokenizer that cannot be cut there leaves none."""
    bare = replace(job, items=(np.zeros(40, int), job.items[1] + 40), _planned={})
    plan = choose(bare, 1 << 50)
    assert plan.fits and plan.needs.step > choose(job, 1 << 50, llm__item_store="hbm").needs.step


def test_divisors():
    assert memory_plan.divisors(12) == [1, 2, 3, 4, 6, 12]
    assert np.all([20 % d == 0 for d in memory_plan.divisors(20)])
