"""Table 9 of the paper (E15): minutes per epoch and per inference pass, beside what this run's rates make of the same work."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from llmsrec_jax.benchmark import made, work
from llmsrec_jax.benchmark.stages import MINUTE
from llmsrec_jax.benchmark.system import System
from llmsrec_jax.data.samples import Samples
from llmsrec_jax.llama import config as llama_config
from llmsrec_jax.published import ELECTRONICS, PUBLISHED, SCIENTIFIC

DATASETS = (SCIENTIFIC, ELECTRONICS)
_OF = [PUBLISHED["table9"][dataset] for dataset in DATASETS]
# one A6000, Llama-3.2-3B: train, inference (Scientific); train, inference (Electronics)
PAPER = {model: (*_OF[0][model], *_OF[1][model]) for model in _OF[0]}
BACKBONE = "llama-3.2-3b"
INFERRED_USERS = 10_000  # the authors evaluate at most so many (D41)


class Works(NamedTuple):
    """Of a dataset: an epoch of training, the inferred users, all items."""

    train: work.Work
    users: work.Work
    items: work.Work


class Projection:
    """{row: minutes}: the work of each dataset, for this backbone and for the paper's, over a run's rates."""

    def __init__(self, system: System):
        self._system = system
        self._backbones = {f"here, {system.cfg.llm.path}": system.llama}
        paper = llama_config.SIZES[BACKBONE]
        if system.llama != paper:
            self._backbones[f"the same rates, {BACKBONE}"] = paper

    @cached_property
    def _works(self) -> dict[str, list[Works]]:
        sizes = {
            title: work.Sizes(self._system.cfg, llama) for title, llama in self._backbones.items()
        }
        return {
            title: [works(self._system, size, made.SHAPES[name]) for name in DATASETS]
            for title, size in sizes.items()
        }

    def rows(self, results: Mapping[str, Any]) -> dict[str, list[float | None]]:
        """In the order of the paper's columns; None where a rate was not measured."""
        rates = {
            name: results[name]["useful_flops_per_s"] for name in Works._fields if name in results
        }
        if not rates:
            return {}

        def minutes(todo: Works, *stages: str) -> float | None:
            if any(name not in rates for name in stages):
                return None
            return sum(getattr(todo, name).flops / rates[name] for name in stages) / MINUTE

        return {
            title: [
                value
                for todo in of_datasets
                for value in (minutes(todo, "train"), minutes(todo, "users", "items"))
            ]
            for title, of_datasets in self._works.items()
        }


def works(system: System, sizes: work.Sizes, shape: made.Shape) -> Works:
    data = system.made_as(shape)
    builder, dataset, cfg = data.builder, data.dataset, system.cfg
    samples = Samples.of(dataset, dataset.eligible("train"), cfg.train.targets)
    lengths = builder.user_lengths(samples)
    prompts = cfg.prompts
    slots = np.minimum(samples.lengths, prompts.history_len).sum() * prompts.item_repr
    told = len(samples) * prompts.user_repr
    items = builder.items(np.arange(1, dataset.catalog.size))
    each = items.prefix_len.astype(np.int64), items.live_lengths
    candidates = len(samples) * (1 + cfg.train.negatives) / len(items)
    training = sizes.prompts(*lengths, float(slots), told, training=True) + sizes.prompts(
        *each, len(items) * prompts.item_repr, training=True
    ).scaled(candidates)
    evaluated = dataset.eligible("test")[:INFERRED_USERS]
    users = builder.users(dataset.inputs("test", evaluated), system.told(len(evaluated)))
    return Works(training, sizes.encoding(users), sizes.encoding(items))
