"""LLM-SRec in miniature, for tests that need more than a dataset."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llmsrec_jax import config, results
from llmsrec_jax.batch import HISTORY, ITEM_OUT, USER_OUT, Grid, PromptBatch
from llmsrec_jax.data import orders
from llmsrec_jax.data.interactions import UserSequences
from llmsrec_jax.data.samples import Samples
from llmsrec_jax.data.splits import Dataset
from llmsrec_jax.llama import config as llama_config
from llmsrec_jax.llama import weights
from llmsrec_jax.llama.model import Llama
from llmsrec_jax.loaders import LLMBatches
from llmsrec_jax.models import llm4rec
from llmsrec_jax.prompts import templates
from llmsrec_jax.prompts.prompts import PromptBuilder
from llmsrec_jax.prompts.tokens import ItemTokens, Tokenizer, training_texts
from llmsrec_jax.stores import ItemStore
from tests.factories import random_dataset

TINY = {  # every stage in seconds; the numbers mean nothing
    "data.source": "shop",
    "data.name": "tiny",
    "data.shop.users": 80,
    "data.shop.items": 144,
    "data.min_item": 1,
    "teacher.d": 8,
    "teacher.max_len": 16,
    "teacher.blocks": 1,
    "teacher.epochs": 4,
    "teacher.validate_every": 2,
    "teacher.batch": 32,
    "llm.path": "random:tiny",
    "llm.tokenizer": "catalogue",
    "prompts.history_len": 3,
    "head.hidden": 16,
    "head.dim": 8,
    "train.epochs": 1,
    "train.batch": 8,
    "train.negatives": 1,
    "train.validations_per_epoch": 2,
    "train.length_groups": 1,
    "train.shapes": 1,
    "train.save_every_s": 1000.0,
    "evaluate.negatives": 20,
    "evaluate.batch": 64,
    "evaluate.shapes": 1,
    "evaluate.max_users": 40,
    "evaluate.validation_users": 20,
    "evaluate.show_users": 1,
    "mesh.devices": 1,
}


def tiny(changes: dict[str, Any] | None = None) -> config.Config:
    """A config whose every stage takes seconds, with {dotted name: value} changed."""
    return config.apply(config.Config(), {**TINY, **(changes or {})})


def config_file(path: Path, changes: dict[str, object]) -> Path:
    """What --config takes: a file whose configuration is `tiny(changes)`."""
    path.write_text(
        "from llmsrec_jax import config\n\n\ndef get_config(arg=None):\n"
        f"    return config.apply(config.Config(), { {**TINY, **changes}!r})\n"
    )
    return path


@dataclass(frozen=True)
class System:
    """LLM-SRec in miniature over a made dataset: random backbone and teacher vectors, real prompts."""

    cfg: config.Config
    dataset: Dataset
    builder: PromptBuilder
    model: nnx.GraphDef
    params: nnx.State
    llama: nnx.GraphDef
    frozen: llm4rec.Frozen
    cf_users: np.ndarray  # float32 [N, E] of what precedes each training interaction

    def merged(self, params: nnx.State | None = None) -> tuple[llm4rec.LLMSRec, Llama]:
        model = nnx.merge(self.model, self.params if params is None else params)
        return model, nnx.merge(self.llama, self.frozen.llama)

    def batches(
        self,
        devices: int = 1,
        changes: dict[str, Any] | None = None,
        mine: Sequence[int] | None = None,
        store: ItemStore | None = None,
    ) -> LLMBatches:
        cfg = config.apply(self.cfg, changes or {})
        samples = Samples.of(self.dataset, self.dataset.eligible("train"), cfg.train.targets)
        vectors = self.cf_users[samples.ends]
        return LLMBatches(samples, self.builder, vectors, cfg, devices, mine, store)


def system(changes: dict[str, Any] | None = None, **sizes: int) -> System:
    """`sizes` go to random_dataset. Small Out tokens: vectors differ by prompt, so that no gradient is a small difference."""
    cfg, made = tiny(changes), random_dataset(**sizes)
    texts = training_texts(made.catalog, cfg.prompts.wording, made.train.times)
    tokenizer = Tokenizer.train(texts, 400)
    wording = templates.named(cfg.prompts.wording, cfg.prompts.item_repr)
    tokens = ItemTokens.build(tokenizer, made.catalog, wording, progress=iter)
    llama = weights.random(llama_config.size("tiny"), 0, jnp.float32, tokenizer.vocab_size)
    shape = llama.cfg
    llama, llama_state = nnx.split(llama)
    head = cfg.head if cfg.prompts.retrieves else None
    sizes, rngs = (cfg.teacher.d, shape.d, head, (0.0, 0.2)), nnx.Rngs(params=0)
    model = llm4rec.LLMSRec(*sizes, rngs, *llm4rec.variant(cfg, shape))
    model, params = nnx.split(model)
    rng = np.random.default_rng(cfg.seed)
    draw = lambda rows: rng.normal(size=(rows, cfg.teacher.d)).astype(np.float32)
    return System(
        cfg,
        made,
        PromptBuilder(tokenizer, tokens, made.catalog, cfg.prompts),
        model,
        params,
        llama,
        llm4rec.Frozen(llama_state, jnp.asarray(draw(made.catalog.size))),
        draw(len(made.train.items)),
    )


def move_only_the_first(monkeypatch) -> None:
    """Orders in which the first user's items move, and nobody else's."""
    shuffle = orders.shuffle

    def of_one(histories: UserSequences, users: np.ndarray, *rest: Any) -> UserSequences:
        permuted = shuffle(histories, users, *rest)
        items = np.where(histories.rows > 0, histories.items, permuted.items)
        return replace(permuted, items=items)

    monkeypatch.setattr(orders, "shuffle", of_one)


def records(workdir: Path) -> list[dict[str, Any]]:
    """Of a work folder's results."""
    return results.read(workdir / "results.json")


def rows_of(batch: PromptBatch) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(token ids, kinds of the live tokens, slot items) of every prompt of one part on one device."""
    found = []
    for grid, before in zip(batch.live.grids, batch.prefix.grids, strict=True):
        for row in range(len(grid.length)):
            prefix = batch.prefix_ids[before.at[row, : before.length[row]]]
            whole = grid.at[row, : grid.length[row]]
            for out in np.flatnonzero(np.isin(batch.kind[whole], (USER_OUT, ITEM_OUT))):
                live = whole[seen(grid, row, out)]
                slots = batch.slot[live][batch.kind[live] == HISTORY]
                assert (batch.slot_at[slots] == live[batch.kind[live] == HISTORY]).all()
                ids = np.concatenate([prefix, batch.ids[live]])
                at = len(prefix) + np.arange(len(live))
                np.testing.assert_array_equal(batch.live.position[live], at)
                found.append((ids, batch.kind[live], batch.slot_item[slots]))
    return found


def seen(grid: Grid, row: int, query: int) -> np.ndarray:
    """The tokens of a row that one of them sees."""
    keys = np.arange(query + 1)
    first, last = (0, 0) if grid.hidden is None else grid.hidden[row, query]
    return keys[(keys < first) | (keys >= last)]


def relative_error(got: Any, want: Any) -> float:
    """Length of the difference, of the length of what is wanted."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape and np.any(want)
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def assert_gradients_agree(
    got: dict[str, np.ndarray], want: dict[str, np.ndarray], whole: float, leaf: float
) -> None:
    """Relative errors of all of them together and of each leaf; a small leaf is mostly rounded, on either side."""
    assert set(got) == set(want)
    together = lambda leaves: np.concatenate([leaves[name].ravel() for name in sorted(want)])
    assert relative_error(together(got), together(want)) < whole
    for name, gradient in want.items():
        assert relative_error(got[name], gradient) < leaf, name


def named(tree: Any) -> dict[str, np.ndarray]:
    """{path: leaf} of a tree of variables."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
    return {name(path).removesuffix(".value"): np.asarray(leaf) for path, leaf in leaves}
