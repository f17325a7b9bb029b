"""teacher: a CF-SRec, trained on interactions alone, then frozen."""

from functools import cached_property, partial

import jax
import numpy as np
from flax import nnx

from llmsrec_jax import evaluate, loaders, memory, parallel, results, train
from llmsrec_jax.cf_training import TeacherJob
from llmsrec_jax.checkpoint import Stage
from llmsrec_jax.data.interactions import Histories
from llmsrec_jax.evaluate import Vectors
from llmsrec_jax.keys import TEACHER
from llmsrec_jax.models import cf
from llmsrec_jax.stages.preparation import Prepared
from llmsrec_jax.stages.work import Work

TEACHER_KEY = 1  # random stream


class Teacher:
    """One CF-SRec over the prepared data."""

    def __init__(self, work: Work, data: Prepared):
        self._work, self._data = work, data

    @property
    def _key(self) -> jax.Array:
        return jax.random.fold_in(jax.random.key(self._work.cfg.seed), TEACHER_KEY)

    @cached_property
    def _model(self) -> tuple[nnx.GraphDef, nnx.State]:
        rngs = nnx.Rngs(params=self._key)
        size = self._data.dataset.catalog.size
        return nnx.split(cf.new(size, self._work.cfg.teacher, rngs))

    @cached_property
    def _job(self) -> TeacherJob:
        return TeacherJob(self._work.cfg, self._work.mesh, self._data.training)

    @property
    def _stage(self) -> Stage:
        return self._work.stage("teacher", TEACHER)

    def require_memory(self) -> None:
        """Stops before the long work, where training would not fit."""
        work = self._work
        if work.done(self._stage):
            return
        limit = memory.available(work.mesh, work.cfg.mesh.memory_gib)
        work.writer.say(f"teacher: {self._job.require(limit).listed(limit)}")

    def train(self) -> None:
        """Trains it, or goes on training it; keeps the best checkpoint (D31)."""
        work, cfg, stage = self._work, self._work.cfg.teacher, self._stage
        if work.done(stage):
            return
        batches = self._job.batches
        per_epoch = batches.order.steps_per_epoch
        total = per_epoch * cfg.epochs
        every = per_epoch * cfg.validate_every
        users, candidates = self._data.candidates("valid")
        histories = self._data.dataset.inputs("valid", users)

        def rank(vectors: Vectors) -> evaluate.Counts:
            if cfg.select == "sampled":
                return evaluate.sampled_ranking(vectors, candidates)
            seen = (lambda row: histories[row][0]) if work.cfg.evaluate.mask_seen else None
            return evaluate.full_ranking(vectors, candidates[:, 0], seen)

        def validate(state: train.State) -> dict[str, float]:
            vectors = self._vectors(state.params, histories)
            counts = rank(vectors)
            return evaluate.selection_metric(counts, 10, work.cfg.evaluate.ties)

        job = train.Job(
            stage="teacher",
            key=stage.key,
            model=f"{results.teacher(work.cfg)}, seed {work.cfg.seed}",
            step=self._job.step,
            frozen=parallel.replicate(self._key, work.mesh),
            batches=partial(loaders.stream, batches),
            put=partial(parallel.put_batch, mesh=work.mesh),
            steps_per_epoch=per_epoch,
            total_steps=total,
            validate_at=[*range(every, total, every), total],
            validate=validate,
            metric="ndcg@10",
            patience=cfg.patience,
            lr_decay=1.0,
            batch_users=batches.order.batch,
            save_every_s=work.cfg.train.save_every_s,
            ranking=cfg.select,
        )
        work.fit(stage, job, train.init_state(self._model[1], cfg.lr, cfg.b2))

    @cached_property
    def _params(self) -> nnx.State:
        work, cfg = self._work, self._work.cfg.teacher
        like = train.init_state(self._model[1], cfg.lr, cfg.b2)
        return work.fitted(self._stage, like, cfg.keep)

    def _users(self, params: nnx.State, histories: Histories) -> np.ndarray:
        work = self._work
        batches = loaders.window_batches(
            histories, work.cfg.teacher.max_len, loaders.TEACHER_ROWS, work.devices, work.mine
        )
        return evaluate.encode(batches, self._job.encoder, (), params, work.mesh, len(histories))

    def _vectors(self, params: nnx.State, histories: Histories) -> Vectors:
        return Vectors(self._users(params, histories), np.asarray(params["item_embedding"][...]))

    def users(self, histories: Histories) -> np.ndarray:
        """O_u of the trained teacher, float32 [n, E]."""
        return self._users(self._params, histories)

    @property
    def items(self) -> np.ndarray:
        """float32 [I, E]."""
        return np.asarray(self._params["item_embedding"][...])
