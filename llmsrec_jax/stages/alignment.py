"""alignment: A-LLMRec's stage 1, and what stands for items in prompts: its joint embeddings, or the teacher's where there is none (S11).

Every user is a sample: the teacher's vector of its training sequence without the last item, that item, and one that it never
took. The last epoch is kept; how well what the CF side decodes recommends is told after each.

Differences from the authors' code, beside those of the model (models/allmrec.py): the texts are titles alone, theirs are titles and
descriptions. From the paper, which says that it trains A-LLMRec with its prompt (c) and the retrieval loss, and no more: stage 1 is
the authors' own, and stage 2 is LLM-SRec's, with its projectors, heads and Out tokens; the authors' f_I has GELU for LeakyReLU.
"""

from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llmsrec_jax import config, evaluate, loaders, memory, parallel, results, train
from llmsrec_jax.cf_training import AlignmentJob, alignment_rows
from llmsrec_jax.checkpoint import Stage
from llmsrec_jax.data import storage
from llmsrec_jax.data.samples import Samples
from llmsrec_jax.evaluate import Vectors
from llmsrec_jax.keys import ALIGNMENT, TEXTS
from llmsrec_jax.models import allmrec
from llmsrec_jax.stages.preparation import Prepared
from llmsrec_jax.stages.teacher import Teacher
from llmsrec_jax.stages.work import Work
from llmsrec_jax.text import config as text
from llmsrec_jax.text import encoder

ALIGNMENT_KEY = 4  # random stream
TEXTS_FILE = "titles.npz"


def require_encoder(cfg: config.Config) -> None:
    """Raises ValueError where the text encoder that it asks for is not here."""
    if not cfg.alignment.trains:
        return
    try:
        text.locate(cfg.alignment.text)
    except ValueError as error:
        raise ValueError(f"alignment.text={cfg.alignment.text}: {error}") from error


class Alignment:
    """Stage 1 over the prepared data and a trained teacher; all of it is skipped where alignment.text is empty."""

    def __init__(self, work: Work, data: Prepared, teacher: Teacher):
        self._work, self._data, self._teacher = work, data, teacher
        self._trains = work.cfg.alignment.trains

    @property
    def _stage(self) -> Stage:
        return self._work.stage("alignment", ALIGNMENT)

    @property
    def _texts_stage(self) -> Stage:
        return self._work.stage("texts", TEXTS)

    @cached_property
    def _job(self) -> AlignmentJob:
        items, width = self._data.dataset.catalog.size, self._texts_stage.info["width"]
        return AlignmentJob(self._work.cfg, self._work.mesh, items, width, len(self._samples))

    def require_even_batches(self) -> None:
        """Stops before the long work."""
        if not self._trains or self._work.done(self._stage):
            return
        alignment_rows(self._work.cfg, len(self._samples), self._work.devices)

    def require_memory(self) -> None:
        """Stops before the long work, where training would not fit."""
        work, cfg = self._work, self._work.cfg
        if not self._trains or work.done(self._stage):
            return
        limit = memory.available(work.mesh, cfg.mesh.memory_gib)
        work.writer.say(f"alignment: {self._job.require(limit).listed(limit)}")

    # titles ---------------------------------------------------------------------------------------------------

    def encode(self) -> None:
        """Vectors of all titles, once; ValueError where the encoder is missing or cannot be read."""
        if self._trains:
            self._work.once(self._texts_stage, self._make_texts)

    def _make_texts(self, stage: Stage) -> dict[str, Any]:
        name, titles = self._work.cfg.alignment.text, self._data.dataset.catalog.titles[1:]
        missing = self._work.cfg.data.missing_title
        found = encoder.load(name).encode(titles, missing)
        pad = np.zeros((1, found.vectors.shape[1]), np.float32)
        storage.write_arrays(
            stage.folder / TEXTS_FILE, vectors=np.concatenate([pad, found.vectors])
        )
        if found.cut:
            self._work.writer.say(
                f"{name}: {found.cut} of {len(titles)} titles are longer than it reads, and were cut"
            )
        if found.empty:
            self._work.writer.say(
                f"{name}: of {found.empty} of {len(titles)} titles it knows no character: {missing!r} is read instead "
                "(data.missing_title)"
            )
        return {"width": found.vectors.shape[1], "cut": found.cut}

    # train ----------------------------------------------------------------------------------------------------

    @cached_property
    def _samples(self) -> Samples:
        dataset = self._data.training
        return Samples.of(dataset, dataset.eligible("train"), "last")

    @cached_property
    def _model(self) -> tuple[nnx.GraphDef, nnx.State]:
        cfg = self._work.cfg
        key = jax.random.fold_in(jax.random.key(cfg.seed), ALIGNMENT_KEY)
        widths = cfg.teacher.d, self._texts_stage.info["width"], cfg.alignment.middle
        return nnx.split(allmrec.Alignment(*widths, nnx.Rngs(params=key)))

    def train(self) -> None:
        """Trains stage 1, or goes on training it.

        Raises:
          ValueError: the vectors of the titles or of the teacher are of another width or catalogue.
        """
        work, cfg = self._work, self._work.cfg.alignment
        if not self._trains or work.done(self._stage):
            return
        (graphdef, params), mesh = self._model, work.mesh
        texts = storage.read_arrays(self._texts_stage.folder / TEXTS_FILE)["vectors"]
        frozen = allmrec.Frozen(*map(jnp.asarray, (self._teacher.items, texts)))
        allmrec.check(nnx.merge(graphdef, params), frozen)
        frozen = parallel.replicate(frozen, mesh)
        batches = loaders.AlignBatches(
            *(self._samples, self._teacher.users(self._samples), cfg.batch, work.cfg.seed),
            *(work.devices, work.mine),
        )
        users, candidates = self._data.candidates("valid")
        user = self._teacher.users(self._data.dataset.inputs("valid", users))

        def validate(state: train.State) -> dict[str, float]:
            vectors = Vectors(user, np.asarray(self._job.decoded(state.params, frozen.cf_items)))
            counts = evaluate.sampled_ranking(vectors, candidates)
            return evaluate.selection_metric(counts, 10, work.cfg.evaluate.ties)

        per_epoch = batches.order.steps_per_epoch
        job = train.Job(
            stage="alignment",
            key=self._stage.key,
            model=f"{results.label(work.cfg)}, seed {work.cfg.seed}",
            step=self._job.step,
            frozen=frozen,
            batches=partial(loaders.stream, batches),
            put=partial(parallel.put_batch, mesh=mesh),
            steps_per_epoch=per_epoch,
            total_steps=per_epoch * cfg.epochs,
            validate_at=train.validation_steps(per_epoch, cfg.epochs, 1),
            validate=validate,
            metric="ndcg@10",
            patience=0,
            lr_decay=1.0,
            batch_users=batches.order.batch,
            save_every_s=work.cfg.train.save_every_s,
        )
        work.fit(self._stage, job, train.init_state(params, cfg.lr, cfg.b2))

    # use ------------------------------------------------------------------------------------------------------

    @cached_property
    def _params(self) -> nnx.State:
        cfg = self._work.cfg.alignment
        like = train.init_state(self._model[1], cfg.lr, cfg.b2)
        return self._work.fitted(self._stage, like, "last")

    def items(self, cf_items: np.ndarray) -> np.ndarray:
        """float32 [n, item_width]: what stands in prompts for items with these CF embeddings [n, E].

        Raises:
          ValueError: they are of another width than stage 1 was trained for.
        """
        if not self._trains:
            return cf_items
        mesh, graphdef = self._work.mesh, self._model[0]
        joint = parallel.everywhere(
            lambda params, cf_items: allmrec.item_repr(nnx.merge(graphdef, params), cf_items), mesh
        )
        return np.asarray(joint(self._params, parallel.replicate(cf_items, mesh)))
