"""Title generation: the estimate against XLA's own account of the training step and of the encoder, as in test_memory.py."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llmsrec_jax import config, loaders, parallel, train
from llmsrec_jax.benchmark import made
from llmsrec_jax.data.samples import Samples
from llmsrec_jax.llama.lora import TARGETS
from llmsrec_jax.models import llm4rec, titles
from llmsrec_jax.presets import PRESETS
from llmsrec_jax.prompts.prompts import PromptBuilder
from llmsrec_jax.prompts.titles import Question, TitlePrompts
from llmsrec_jax.prompts.tokens import ItemTokens
from llmsrec_jax.title_loaders import TitleBatches
from llmsrec_jax.title_memory import TitleJob
from tests.factories import random_dataset
from tests.test_memory import BACKBONE, SETTINGS, Shape, abstract_llama, account

TITLE = {**SETTINGS, **PRESETS["tallrec"], **PRESETS["title"], "evaluate.batch": 8}


class Words(made.Tokens):
    end = 1

    def has_token_across(self, cut: str) -> bool:
        return False


class Case:
    """A configuration over made data."""

    def __init__(self, changes: dict[str, Any], **sizes: Any):
        self.cfg = cfg = config.apply(config.Config(), {**TITLE, "train.parts": 1, **changes})
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
        batch = self.batches._shard(rows, asked, places, self.batches.shapes[-1])
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
        batches = loaders.encoding_batches(
            self.prompts, cfg.batch, self.mesh.parts, cfg.shapes, outs=most
        )
        batch = max((batch for _, batch in batches), key=lambda batch: batch.ids.size)
        wrapped = parallel.encode_wrapper(titles.encoder(model, llama), self.mesh)
        whole = self.lowered(wrapped, params, frozen, batch)
        needs = self.job.needs(1, "recompute")
        return needs.encoding, whole - needs.weights - needs.trained // 3 - needs.teacher


if __name__ == "__main__":
    import sys, json
    C = {"prompts.max_tokens": 640}
    EVERY = {"lora.rank": 16, "lora.targets": tuple(TARGETS)}
    S = {"prompts.item_repr": True, "prompts.user_repr": True, "lora.rank": 0, "lora.targets": ("q_proj", "v_proj"), "lora.alpha":16.0,"lora.dropout":0.05}
    A = {n: v for n, v in PRESETS["a_llmrec"].items() if n.startswith("prompts")} 
    cases = {
      "base": (C, {}),
      "vocab": (C, dict(vocab=32768)),
      "vocab bf16": ({**C, "llm.dtype": "bf16"}, dict(vocab=32768)),
      "untied vocab": (C, dict(vocab=32768, tied=False)),
      "parts2": ({**C, "train.parts": 2}, {}),
      "inputs": ({**C, "llm.remat": "inputs"}, {}),
      "none": ({**C, "llm.remat": "none"}, {}),
      "every": ({**C, **EVERY}, {}),
      "every inputs vocab parts": ({**C, **EVERY, "llm.remat": "inputs", "train.parts": 4}, dict(vocab=32768)),
      "slots": ({**C, "prompts.item_repr": True, "prompts.user_repr": True}, {}),
      "groups": ({**C, "train.length_groups": 3}, {}),
      "long": ({}, {}),
      "w8": ({**C, "llm.quant": "w8"}, {}),
      "shared": ({**C, "mesh.devices": 4, "mesh.fsdp": 2, "mesh.tensor": 2}, dict(vocab=32768)),
    }
    for name in sys.argv[1:] or cases:
        c, sizes = cases[name]
        case = Case(c, **sizes)
        e, x = case.estimated(), case.counted()
        f, g = case.encoding()
        n = case.job.needs(case.cfg.train.parts, "recompute", case.batches.shapes[-1])
        print(f"{name:26} step {e/x:.3f} ({e>>20} vs {x>>20} MiB)  encoding {f/g:.3f} ({f>>20} vs {g>>20})", case.batches.shapes[-1], case.job.most, case.job.asked, n.weights>>20, n.trained>>20, n.step>>20, flush=True)
