"""What retrieval and title generation share: a frozen backbone, and what trains around it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llmsrec_jax import evaluate, loaders, memory_plan, parallel, results, title_loaders, train
from llmsrec_jax.checkpoint import Stage
from llmsrec_jax.data import splits
from llmsrec_jax.data.samples import Samples
from llmsrec_jax.evaluate import Scores
from llmsrec_jax.keys import PERMUTED, TRAIN
from llmsrec_jax.llama import weights
from llmsrec_jax.llama.adapters import merged
from llmsrec_jax.memory import Job
from llmsrec_jax.models import llm4rec
from llmsrec_jax.prompts.tokens import check_vocabulary
from llmsrec_jax.stages.alignment import Alignment
from llmsrec_jax.stages.preparation import Prepared
from llmsrec_jax.stages.teacher import Teacher
from llmsrec_jax.stages.tokens import Tokens
from llmsrec_jax.stages.work import Work
from llmsrec_jax.stores import ItemStore

LLM_KEY = 2  # random stream
# a random backbone stands for pretrained weights: it does not change with the seed
BACKBONE_SEED = 0

Batches = loaders.LLMBatches | title_loaders.TitleBatches
Validate = Callable[[train.State], dict[str, float]]


class Judged(NamedTuple):
    """What a reader says of the test users."""

    scores: Scores
    permuted: Sequence[Scores]  # of histories in other orders
    alike: np.ndarray | None = None  # float64 [U]: cosine of hidden states before and after
    answers: dict[str, np.ndarray] = {}  # more metrics per user, float64 [U]; NaN = says nothing


class Reader(ABC):
    """An LLM that reads prompts, and what stands around it."""

    # cached properties that hold the backbone, or know of its weights
    held: tuple[str, ...] = ("_backbone", "_model", "_params", "frozen")
    store: ItemStore | None = None  # keys and values of item prompts' prefixes, where they are kept

    def __init__(
        self,
        work: Work,
        data: Prepared,
        tokens: Tokens,
        teacher: Teacher,
        alignment: Alignment,
        before: "Reader | None" = None,
    ):
        """before: whose backbone this one reads with, as that has trained it (S10)."""
        self._work, self._data, self._tokens, self._teacher = work, data, tokens, teacher
        self._alignment, self._before = alignment, before

    @abstractmethod
    def train(self) -> None:
        """Trains, or goes on training; the best checkpoint by validation is kept."""

    def _fit(self, batches: Batches, validate: Validate, **more: Any) -> None:
        """Trains on `batches`; more: of `train.llm_step`."""
        work, cfg, (graphdef, params) = self._work, self._work.cfg.train, self._model
        graphs = {"model": graphdef, "llama": self._backbone[0], **more}
        per_device = partial(train.llm_step, **graphs, cfg=work.cfg, axis=work.mesh.axis)
        per_epoch = batches.order.steps_per_epoch
        job = train.Job(
            stage="train",
            key=self._stage.key,
            model=f"{results.label(work.cfg)}, seed {work.cfg.seed}",
            step=parallel.train_wrapper(per_device, work.mesh),
            frozen=self.frozen,
            batches=partial(loaders.stream, batches),
            put=partial(parallel.put_batch, mesh=work.mesh),
            steps_per_epoch=per_epoch,
            total_steps=per_epoch * cfg.epochs,
            validate_at=train.validation_steps(per_epoch, cfg.epochs, cfg.validations_per_epoch),
            validate=validate,
            metric=cfg.metric,
            patience=cfg.patience,
            lr_decay=cfg.lr_decay if cfg.lr_schedule == "decay" else 1.0,
            batch_users=batches.order.batch,
            save_every_s=cfg.save_every_s,
        )
        work.fit(self._stage, job, train.init_state(params, cfg.lr, cfg.b2))
        self._tokens.say_trimmed("training and validation")

    def _validated(self, scores: Scores, candidates: np.ndarray) -> dict[str, float]:
        """What `train.metric` selects by, with its fellows, of candidates int [U, C]."""
        cfg = self._work.cfg
        cutoff = int(cfg.train.metric.partition("@")[2])
        counts = evaluate.sampled_ranking(scores, candidates)
        return evaluate.selection_metric(counts, cutoff, cfg.evaluate.ties)

    @abstractmethod
    def encode(self) -> None:
        """Reads what the test users need, once."""

    @abstractmethod
    def encode_permuted(self) -> None:
        """The same for their histories in other orders, once for every permutation (E8)."""

    @abstractmethod
    def judged(self) -> Judged:
        """What that says of the test users."""

    @property
    @abstractmethod
    def _job(self) -> Job:
        """What training, if it is not finished, and what follows ask of the memory."""

    # before ---------------------------------------------------------------------------------------------------

    @property
    def _stage(self) -> Stage:
        return self._work.stage("checkpoints", TRAIN)

    def require_trained(self) -> None:
        """Stops before the long work: --mode=evaluate trains nothing."""
        if not self._stage.finished:
            raise ValueError(
                f"{results.label(self._work.cfg)} is not trained for this configuration in {self._work.workdir}: "
                "run --mode=train (or run) first"
            )

    def require_memory(self) -> None:
        """Stops before the long work, where training would not fit."""
        if not self._work.done(self._stage):
            self.plan.require()
            self._work.writer.say(self.plan.report())
            self._tokens.say_trimmed("the catalogue")

    @cached_property
    def plan(self) -> memory_plan.Plan:
        """How training, if it is not finished, uses the memory."""
        return memory_plan.choose(self._job, self._work.mesh)

    def require_even_batches(self) -> None:
        """Stops before the long work: the backbone and the batches are shared out evenly over the devices."""
        work = self._work
        work.mesh.weights.check(work.keys.backbone[0], work.cfg.llm.quant)
        if work.done(self._stage):
            return
        batch = min(work.cfg.train.batch, len(self._samples))
        loaders.per_device(batch, work.devices, "train.batch")

    # what is frozen -------------------------------------------------------------------------------------------

    @cached_property
    def _samples(self) -> Samples:
        """What is trained on."""
        dataset, cfg = self._data.training, self._work.cfg
        users = splits.sample_users(dataset.eligible("train"), cfg.train.max_users, cfg.seed)
        return Samples.of(dataset, users, cfg.train.targets)

    @cached_property
    def _backbone(self) -> tuple[nnx.GraphDef, nnx.State]:
        learned = None if self._before is None else self._before.learned()
        work, tokenizer = self._work, self._tokens.builder.tokenizer
        (shape, folder), cfg = work.keys.backbone, work.cfg.llm
        shape = replace(shape, writes=not work.cfg.prompts.retrieves)
        how = weights.compute_dtype(cfg.dtype), cfg.quant, work.mesh.weights
        if folder is None:
            work.writer.say(f"{cfg.path}: a backbone of random weights, a toy")
            dtype, quant, sharding = how
            size = tokenizer.vocab_size
            llama = weights.random(shape, BACKBONE_SEED, dtype, size, quant, sharding)
        else:
            check_vocabulary(tokenizer, shape.vocab)
            llama = weights.load(folder, shape, *how)
        graphdef, state = nnx.split(llama)
        return graphdef, state if learned is None else _put(graphdef, state, *learned)

    def learned(self) -> tuple[nnx.GraphDef, nnx.State]:
        """What it has trained, which it gives up together with its backbone: there is no room for two."""
        found = self._model[0], self._params
        for name in self.held:
            vars(self).pop(name, None)
        return found

    @cached_property
    def frozen(self) -> llm4rec.Frozen:
        items = self._alignment.items(self._teacher.items)
        items = parallel.replicate(jnp.asarray(items), self._work.mesh)
        kept = None if self.store is None else self.store.resident
        key = self._key if self._work.cfg.lora.trains else None
        key = parallel.replicate(key, self._work.mesh)
        return llm4rec.Frozen(self._backbone[1], items, kept, key)

    def embedded(self, ids: np.ndarray) -> np.ndarray:
        """float32 [n, D]: the backbone's embeddings of token ids int [n]."""
        graphdef, state = self._backbone
        embed = lambda state, ids: nnx.merge(graphdef, state).embed(ids).astype(jnp.float32)
        padded = np.zeros(1 << (len(ids) - 1).bit_length(), np.int32)  # few shapes to compile
        padded[: len(ids)] = ids
        mesh = self._work.mesh
        made = parallel.everywhere(embed, mesh)(state, parallel.replicate(padded, mesh))
        return np.asarray(made)[: len(ids)]

    # what trains ----------------------------------------------------------------------------------------------

    @property
    def _key(self) -> jax.Array:
        return jax.random.fold_in(jax.random.key(self._work.cfg.seed), LLM_KEY)

    @cached_property
    def _model(self) -> tuple[nnx.GraphDef, nnx.State]:
        backbone, rngs = nnx.merge(*self._backbone), nnx.Rngs(params=self._key)
        return nnx.split(llm4rec.new(self._work.cfg, backbone, rngs))

    @cached_property
    def _params(self) -> nnx.State:
        cfg = self._work.cfg.train
        return self._work.fitted(self._stage, train.init_state(self._model[1], cfg.lr, cfg.b2))

    def _permuted(self, number: int) -> Stage:
        return self._work.stage("permuted", PERMUTED, permutation=number)


def _put(
    graphdef: nnx.GraphDef, state: nnx.State, model: nnx.GraphDef, params: nnx.State
) -> nnx.State:
    """The weights of a backbone, which are given up, with the LoRA of a trained model added to them."""

    def put(state: nnx.State, params: nnx.State) -> nnx.State:
        return nnx.state(merged(nnx.merge(graphdef, state), nnx.merge(model, params).added()))

    like = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(put, out_shardings=like, donate_argnums=0)(state, params)
