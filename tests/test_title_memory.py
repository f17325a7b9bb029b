"""Title generation: the estimate against XLA's own account of the training step and of the encoder, as in test_memory.py."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llmsrec_jax import config, loaders, memory_plan, parallel, train
from llmsrec_jax.benchmark import made
from llmsrec_jax.data.samples import Samples
from llmsrec_jax.llama import config as llama_config
from llmsrec_jax.llama.lora import TARGETS
from llmsrec_jax.memory import GIB, MARGIN
from llmsrec_jax.models import llm4rec, titles
from llmsrec_jax.presets import PRESETS
from llmsrec_jax.prompts.prompts import PromptBuilder
from llmsrec_jax.prompts.titles import Question, TitlePrompts
from llmsrec_jax.prompts.tokens import ItemTokens
from llmsrec_jax.title_loaders import TitleBatches
from llmsrec_jax.title_memory import TitleJob
from tests.factories import random_dataset
from tests.test_memory import BACKBONE, SETTINGS, Shape, abstract_llama, account

TITLE = {
    **SETTINGS,
    **PRESETS["tallrec"],
    **PRESETS["title"],
    "prompts.max_tokens": 640,
    "evaluate.batch": 8,
}
EVERY = {"lora.rank": 16, "lora.targets": tuple(TARGETS)}
SLOTS = {"prompts.item_repr": True, "prompts.user_repr": True}
INPUTS = {"llm.remat": "inputs"}
# so little else that logits are what counts
LOGITS = {**INPUTS, "train.negatives": 3, "evaluate.negatives": 3, "prompts.max_tokens": 256}
LOGITS |= {"train.batch": 8, "vocab": 131_072}


class Words(made.Tokens):
    def has_token_across(self, cut: str) -> bool:
        return False


class Case:
    """A configuration over made data."""

    def __init__(self, changes: dict[str, Any]):
        """changes: of settings, and of the shape of the backbone."""
        sizes = {name: x for name, x in changes.items() if "." not in name}
        settings = {name: x for name, x in changes.items() if "." in name}
        self.cfg = cfg = config.apply(config.Config(), {**TITLE, "train.parts": 1, **settings})
        self.llama = replace(BACKBONE, writes=True, **sizes)
        dataset = random_dataset(users=40, items=60)
        tokenizer: Any = Words(self.llama.vocab)
        wording = made.named(cfg.prompts.wording, cfg.prompts.item_repr)
        tokens = ItemTokens.build(tokenizer, dataset.catalog, wording, progress=iter)
        builder = PromptBuilder(tokenizer, tokens, dataset.catalog, cfg.prompts)
        self.titles = TitlePrompts(builder, dataset.catalog, cfg.prompts, 1 + cfg.train.negatives)
        samples = Samples.of(dataset, dataset.eligible("train"), cfg.train.targets)
        self.mesh = parallel.make_mesh(cfg.mesh)
        users = np.arange(16)
        rng = np.random.default_rng(0)
        some = 1 + np.stack([rng.choice(60, 1 + cfg.evaluate.negatives, False) for _ in users])
        self.judged = dataset.inputs("valid", users), Question(some, some)
        made_of = self.titles, samples, self.judged
        self.job = TitleJob.of(cfg, self.llama, *made_of, self.mesh)
        tells = cfg.prompts.user_repr
        told = lambda n: np.zeros((n, cfg.teacher.d), np.float32) if tells else None
        self.prompts = self.titles.later(*self.judged, told(len(users)))
        data = samples, self.titles, told(len(samples))
        self.batches = TitleBatches(*data, cfg, self.mesh.parts)
        self.items = Shape((dataset.catalog.size, cfg.teacher.d), jnp.float32)

    @property
    def model(self) -> tuple[nnx.GraphDef, nnx.State]:
        new = lambda: llm4rec.of(self.cfg, self.llama, (0.0, 1.0), nnx.Rngs(params=0))
        return nnx.split(nnx.eval_shape(new))

    def lowered(self, wrapped: Any, state: nnx.GraphDef, frozen: nnx.State, batch: Any) -> int:
        batch = jax.tree.map(lambda x: Shape((self.mesh.parts, *x.shape[1:]), x.dtype), batch)
        key = jax.eval_shape(lambda: jax.random.key(0)) if self.cfg.lora.trains else None
        held = llm4rec.Frozen(frozen, self.items, None, key)
        return account(wrapped.lower(held, state, batch).compile())

    def counted(self) -> int:
        """Bytes, by XLA's account, of the step that holds any batch."""
        (model, params), (llama, frozen) = self.model, self.backbone
        graphs = {"model": model, "llama": llama, "objective": titles.loss}
        state = jax.eval_shape(lambda params: train.init_state(params, 1e-4, 0.98), params)
        step = partial(train.llm_step, **graphs, cfg=self.cfg, axis=self.mesh.axis)
        rows, cfg = self.batches.order(0), self.cfg.train
        places = np.arange(self.batches.rows).reshape(cfg.parts, -1)
        asked = self.batches.question(rows, 0)
        batch = self.batches._shard(rows, asked, places, self.batches.shapes[-1], None)
        batch = jax.tree.map(lambda x: x[None], batch)
        return self.lowered(parallel.train_wrapper(step, self.mesh), state, frozen, batch)

    @property
    def backbone(self) -> tuple[nnx.GraphDef, nnx.State]:
        return abstract_llama(self.cfg.llm, self.mesh.weights, self.llama)

    def estimated(self) -> int:
        return self.job.needs(self.cfg.train.parts, "recompute", self.batches.shapes[-1]).program

    def encoding(self) -> tuple[int, int]:
        """Bytes of reading the longest rows: estimated, and by XLA's account, without arguments."""
        (model, params), (llama, frozen) = self.model, self.backbone
        cfg, most = self.cfg.evaluate, int(self.titles.asked(self.judged[1]).max())
        options = cfg.batch, self.mesh.parts, cfg.shapes
        batches = loaders.encoding_batches(self.prompts, *options, outs=most)
        batch = max((batch for _, batch in batches), key=lambda batch: batch.ids.size)
        wrapped = parallel.encode_wrapper(titles.encoder(model, llama), self.mesh)
        whole = self.lowered(wrapped, params, frozen, batch)
        needs = self.job.needs(1, "recompute")
        return needs.encoding, whole - needs.weights - needs.trained // 3 - needs.teacher


@pytest.mark.parametrize(
    "changes",
    [
        {"lora.rank": 2, "llm.quant": "w8", **SLOTS},
        LOGITS,
        *(
            pytest.param(changes, marks=pytest.mark.slow)
            for changes in (
                {},
                {"vocab": 32_768, "tied": False, "train.length_groups": 3},
                {"vocab": 32_768, "llm.dtype": "bf16"},
                {"vocab": 32_768, "train.parts": 4, **INPUTS, **EVERY},
                {"llm.remat": "none"},
                {"vocab": 32_768, "mesh.devices": 4, "mesh.fsdp": 2, "mesh.tensor": 2},
            )
        ),
    ],
    ids=str,
)
def test_the_estimate_is_within_15_percent(changes):
    case = Case(changes)
    assert case.estimated() == pytest.approx(case.counted(), rel=0.15)
    told, counted = case.encoding()
    assert told == pytest.approx(counted, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["names", "none"])
def test_the_estimate_where_attention_is_not_row_by_row(remat, monkeypatch):
    """As on accelerators."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    case = Case({"llm.remat": remat})
    assert case.estimated() == pytest.approx(case.counted(), rel=0.15)
    told, counted = case.encoding()
    assert told == pytest.approx(counted, rel=0.15)


@pytest.fixture(scope="module")
def job() -> TitleJob:
    """A 1B backbone; a thousand rows, one of which is long; 20 candidates are judged together."""
    changes = {"train.batch": 8, "train.length_groups": 2, "train.shapes": 4, "llm.dtype": "bf16"}
    changes |= {"llm.item_store": "auto", "train.parts": 0}
    cfg, rng = config.apply(config.Config(), {**TITLE, **changes}), np.random.default_rng(0)
    lengths = np.append(rng.integers(300, 600, 999), 1200)
    judged, llama = rng.integers(900, 1500, 50), llama_config.size("llama-3.2-1b")
    llama = replace(llama, writes=True)
    return TitleJob(cfg, llama, 1, 8, 100, 40, lengths, 2048, 40, judged, 20 * 40)


def choose(job: TitleJob, size: float, **changes: Any) -> memory_plan.Plan:
    """On a device with `size` bytes and the margin."""
    limit = MARGIN * size / GIB
    mesh = parallel.make_mesh(config.Mesh(devices=1))
    return memory_plan.choose(job.changed({**changes, "mesh.memory_gib": limit}), mesh)


def test_as_few_parts_as_fit_and_no_store(job):
    totals = {parts: job.needs(parts, "recompute").total for parts in (1, 2, 4)}
    assert totals[1] > totals[2] > totals[4]
    for parts, total in totals.items():
        plan = choose(job, total + 1)
        assert (plan.parts, plan.item_store, plan.needs.total) == (parts, "recompute", total)
    assert job.worst(1, "recompute") > totals[1]
    assert not choose(job, totals[2] + 1, **{"train.parts": 1}).fits


def test_advice_is_of_what_title_generation_has(job):
    plan = choose(job, 0.7 * job.needs(1, "recompute").total, **{"train.parts": 1})
    assert not plan.fits and plan.advice
    advice = "\n".join(plan.advice)
    assert "--config.train.parts=" in advice and "item_store" not in advice


def test_what_predicts_tokens_is_counted(job):
    """An lm_head of its own; no heads train; all that is asked for at once in validations."""
    llama, plain = job.llama, job.needs(1, "recompute")
    untied = replace(job, llama=replace(llama, tied=False)).needs(1, "recompute")
    assert untied.weights - plain.weights == 2 * llama.vocab * llama.d
    widths = 2 * llama.d + llama.heads * llama.head_dim + llama.kv_heads * llama.head_dim
    assert plain.trained == 3 * 4 * llama.layers * job.cfg.lora.rank * widths
    more = replace(job, asked=2 * job.asked).needs(1, "recompute")
    assert more.encoding > 1.2 * plain.encoding and more.step == plain.step
