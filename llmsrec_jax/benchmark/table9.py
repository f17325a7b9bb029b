"""Table 9 of the paper (E15): minutes per epoch and per inference pass, beside what this run's rates make of the same work."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

from llmsrec_jax import config
from llmsrec_jax.benchmark import made, tasks, work
from llmsrec_jax.benchmark.stages import MINUTE
from llmsrec_jax.benchmark.system import System
from llmsrec_jax.llama import config as llama_config
from llmsrec_jax.published import ELECTRONICS, PUBLISHED, SCIENTIFIC

DATASETS = (SCIENTIFIC, ELECTRONICS)
_OF = [PUBLISHED["table9"][dataset] for dataset in DATASETS]
# one A6000, Llama-3.2-3B: train, inference (Scientific); train, inference (Electronics)
PAPER = {model: (*_OF[0][model], *_OF[1][model]) for model in _OF[0]}
BACKBONE = "llama-3.2-3b"
INFERRED_USERS = 10_000  # the authors evaluate at most so many (D41)


class Works(NamedTuple):
    """Of a dataset: an epoch of training, the inferred users, all items where those are read; None where there is no such work."""

    train: work.Work | None
    users: work.Work | None
    items: work.Work | None


class Projection:
    """{row: minutes}: the work of each dataset, for this backbone and for the paper's, over a run's rates."""

    def __init__(self, system: System, say: Callable[[str], None] = print):
        self._system, self._say = system, say
        self._backbones = {f"here, {system.cfg.llm.path}": system.llama}
        paper = replace(llama_config.SIZES[BACKBONE], writes=system.llama.writes)
        if system.llama != paper:
            self._backbones[f"the same rates, {BACKBONE}"] = paper

    @cached_property
    def _works(self) -> dict[str, list[Works]]:
        of_backbones = [work.Sizes(self._system.cfg, llama) for llama in self._backbones.values()]
        each = [self._of(name, of_backbones) for name in DATASETS]
        return dict(zip(self._backbones, map(list, zip(*each, strict=True)), strict=True))

    def _of(self, name: str, of_backbones: Sequence[work.Sizes]) -> list[Works]:
        """Of a dataset, backbone by backbone."""
        limits = {"train.max_users": 0, "evaluate.max_users": INFERRED_USERS}
        cfg = config.apply(self._system.cfg, limits)
        try:
            task = tasks.of(replace(self._system, cfg=cfg, shape=made.SHAPES[name], given=None))
            return [works(task, sizes) for sizes in of_backbones]
        except ValueError as error:  # titles as long as those of that dataset
            self._say(f"Table 9, {name}: {error}")
            return [Works(None, None, None) for _ in of_backbones]

    def rows(self, results: Mapping[str, Any]) -> dict[str, list[float | None]]:
        """In the order of the paper's columns; None where a rate was not measured."""
        rates = {
            name: results[name]["useful_flops_per_s"] for name in Works._fields if name in results
        }
        if not rates:
            return {}

        def minutes(todo: Works, *stages: str) -> float | None:
            found = {name: getattr(todo, name) for name in stages}
            read = {name: one for name, one in found.items() if one is not None}
            if not read or not read.keys() <= rates.keys():
                return None
            return sum(one.flops / rates[name] for name, one in read.items()) / MINUTE

        return {
            title: [
                value
                for todo in of_datasets
                for value in (minutes(todo, "train"), minutes(todo, "users", "items"))
            ]
            for title, of_datasets in self._works.items()
        }


def works(task: tasks.Task, sizes: work.Sizes) -> Works:
    """Of the data of a task, with the operations of `sizes`."""
    users, items = (
        task.work(kind, sizes) if kind in task.kinds else None for kind in ("users", "items")
    )
    return Works(task.epoch(sizes), users, items)
