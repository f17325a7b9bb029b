"""A whole run: stage after stage, each written as soon as it is measured."""

import datetime
import importlib.metadata
import importlib.util
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from llmsrec_jax import config, memory_plan, parallel, rules
from llmsrec_jax.benchmark import alignment, growth, report, stages, table9, tasks, timing
from llmsrec_jax.benchmark.stages import Bench
from llmsrec_jax.benchmark.system import System
from llmsrec_jax.checkpoint import write_json
from llmsrec_jax.stages.alignment import require_encoder

PACKAGES = ("llmsrec_jax", "jax", "jaxlib", "flax", "numpy", "torch", "transformers")


@dataclass(frozen=True)
class Options:
    stages: tuple[str, ...]  # names of STAGES
    vs: tuple[str, ...]  # padded, torch
    repeats: int
    steps: int  # training steps per round of a comparison


STAGES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "peak": stages.peak,
    "data": stages.data,
    "train": stages.train,
    "users": partial(stages.encode, kind="users"),
    "items": partial(stages.encode, kind="items"),
    "teacher": stages.teacher,
    "alignment": alignment.alignment,
    "growth": growth.growth,
}


def run(
    cfg: config.Config,
    out: Path,
    options: Options,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measures, writes benchmark.json and benchmark.md in `out`, says what it found.

    Raises:
      ValueError: a wrong configuration.
      Disagreement: another implementation of the same job has other results.
    """
    rules.validate(cfg)
    parallel.keep_memory()
    if options.vs and not cfg.prompts.retrieves:
        raise ValueError("--vs compares retrieval: leave out prompts.task=title")
    if set(options.stages) == {"items"} and not cfg.prompts.retrieves:
        raise ValueError(
            "--stages=items: a prompt that asks for a title holds its candidates, no item is encoded alone"
        )
    if "growth" in options.stages and not cfg.prompts.retrieves:
        raise ValueError("--stages=growth is of retrieval: leave out prompts.task=title")
    if "torch" in options.vs and cfg.prompts.user_repr:
        raise ValueError("--vs=torch knows no user vector in prompts: leave out prompts.user_repr")
    if "torch" in options.vs and not cfg.prompts.item_repr:
        raise ValueError("--vs=torch knows no prompts of titles alone: leave out prompts.item_repr")
    if options.vs and cfg.llm.quant != "none":
        raise ValueError(
            f"--vs compares equal results, llm.quant={cfg.llm.quant!r} has others: leave one out"
        )
    if options.vs and cfg.lora.trains:
        raise ValueError("--vs knows no LoRA: leave out lora.rank")
    if options.vs and cfg.llm.item_store_dtype != "auto":
        raise ValueError(
            f"--vs compares equal results, llm.item_store_dtype={cfg.llm.item_store_dtype!r} may have others: leave one out"
        )
    if options.vs and cfg.mesh.devices != 1 and jax.device_count() > 1:
        raise ValueError("--vs compares on one device: add --config.mesh.devices=1")
    if "torch" in options.vs and not all(map(importlib.util.find_spec, ("torch", "transformers"))):
        raise ValueError("--vs=torch needs PyTorch and transformers: pip install -e '.[torch]'")
    if "alignment" in options.stages:
        if not cfg.alignment.trains:
            raise ValueError("--stages=alignment is A-LLMRec's stage 1: name alignment.text")
        require_encoder(cfg)  # before the long work
    system = System.of(cfg)
    plan = memory_plan.choose(tasks.of(system).job, system.mesh)
    if "train" in options.stages:
        plan.require()
        say(plan.report())
    system = replace(system, cfg=plan.apply(cfg))
    parallel.keep_precise()
    bench = Bench(system, options.repeats, say)
    results = bench.results
    results["environment"] = environment(system)
    results["config"] = config.to_dict(cfg)
    projection = table9.Projection(system, say)

    def keep(section: str, name: str, value: Any) -> None:
        place = results if not section else results.setdefault(section, {})
        place[name] = report.plain(value)
        write_json(out / "benchmark.json", results)  # whatever is made of it
        results["table9"] = projection.rows(results)
        write_json(out / "benchmark.json", results)
        (out / "benchmark.md").write_text(report.markdown(results))
        say(f"{section or 'measured'}: {name}")

    if {"train", "items"} & set(options.stages) and (kept := stages.store(bench)):
        keep("", "store", kept)
    for name, measure in STAGES.items():
        if name not in options.stages:
            continue
        if name == "items" and name not in bench.task.kinds:
            say("a prompt that asks for a title holds its candidates: no item is encoded alone")
            continue
        keep("", name, measure(bench))
        for other, compare in _comparisons(name, options):
            keep("versus", other, compare(bench))
    say(f"\n{report.markdown(results)}\n{out}/benchmark.json, {out}/benchmark.md")
    return results


def _comparisons(stage: str, options: Options) -> list[tuple[str, Callable[[Bench], Any]]]:
    """What is to be compared after a stage."""
    if not options.vs:
        return []
    from llmsrec_jax.benchmark import versus

    if stage == "train":
        return [(stage, partial(versus.train, names=options.vs, steps=options.steps))]
    if "torch" in options.vs and stage in ("users", "items"):
        return [(stage, partial(versus.encode, kind=stage))]
    if "torch" in options.vs and stage == "teacher":
        return [(stage, versus.teacher)]
    return []


def environment(system: System) -> dict[str, Any]:
    """Where and with what: everything a reader needs to judge the numbers."""
    installed = {dist.metadata["Name"] for dist in importlib.metadata.distributions()}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if name in installed}
    device = jax.devices()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": device.device_kind,
        "platform": device.platform,
        "devices": system.devices,
        "processor": platform.processor() or platform.machine(),
        "cores": timing.cores(),
        "python": platform.python_version(),
        "packages": versions,
        "backbone": system.cfg.llm.path,
        "dtype": jnp.dtype(system.dtype).name,
        "quant": system.cfg.llm.quant,
        "data": "made" if system.given is None else system.given.name,
        "sizes": asdict(system.shape),
        "compilation_cache": getattr(jax.config, "jax_compilation_cache_dir", None) or "",
    }
