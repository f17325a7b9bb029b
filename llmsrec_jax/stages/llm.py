"""train, encode: retrieval over a frozen backbone and a frozen teacher, as LLM-SRec does it."""

from functools import cached_property
from typing import Any

import numpy as np
from flax import nnx

from llmsrec_jax import evaluate, loaders, parallel, stores, train
from llmsrec_jax.checkpoint import Stage
from llmsrec_jax.data import orders, storage
from llmsrec_jax.data.interactions import UserSequences
from llmsrec_jax.evaluate import Vectors, unit
from llmsrec_jax.keys import VECTORS
from llmsrec_jax.memory import RetrievalJob
from llmsrec_jax.models import llm4rec
from llmsrec_jax.prompts.prompts import LatePrompts, Prompts
from llmsrec_jax.stages.reader import Judged, Reader

VECTORS_FILE = "test.npz"


class LLMRec(Reader):
    """Retrieval: heads and tokens that train, around what is frozen."""

    held = (*Reader.held, "_encoders", "store")

    @property
    def _job(self) -> RetrievalJob:
        work = self._work
        data = self._tokens.builder, self._samples
        over = work.done(self._stage)
        return RetrievalJob.of(work.cfg, work.keys.backbone, *data, work.mesh, over)

    # what is frozen -------------------------------------------------------------------------------------------

    @cached_property
    def store(self) -> stores.ItemStore | None:
        """Keys and values of item prompts' prefixes, where they are kept."""
        work = self._work
        auto = work.cfg.llm.item_store == "auto"
        cfg = (self.plan.apply(work.cfg) if auto else work.cfg).llm
        items = self._tokens.builder.items(np.arange(1, self._data.dataset.catalog.size))
        with work.writer.progress("item prefixes", len(items), unit="items", compiles=True) as bar:
            return stores.of(cfg, self._backbone, items, work.mesh, bar.update)

    # train ----------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Trains LLM-SRec, or goes on training it; the best checkpoint by validation is kept."""
        work, dataset = self._work, self._data.dataset
        if work.done(self._stage):
            return
        cf_user_repr = self._teacher.users(self._samples)
        batches = loaders.LLMBatches(
            *(self._samples, self._tokens.builder, cf_user_repr, self.plan.apply(work.cfg)),
            *(work.devices, work.mine, self.store),
        )
        valid_users, candidates = self._data.candidates("valid")
        prompts = self._user_prompts(dataset.inputs("valid", valid_users))
        item_ids = np.unique(candidates)
        items = self._tokens.builder.items(item_ids)

        def validate(state: train.State) -> dict[str, float]:
            vectors = self._vectors(state.params, prompts, items, item_ids, "validation")
            return self._validated(vectors, candidates)

        self._fit(batches, validate)

    def _user_prompts(self, histories: UserSequences) -> LatePrompts:
        """Of users to encode; what is told of them is what the teacher makes of these very histories (E19)."""
        told = self._teacher.users(histories) if self._work.cfg.prompts.user_repr else None
        return self._tokens.builder.later(histories, told)

    # encode ---------------------------------------------------------------------------------------------------

    @cached_property
    def _encoders(self) -> dict[str, Any]:
        graphs = self._model[0], self._backbone[0]
        each = {kind: llm4rec.encoder(kind, *graphs) for kind in llm4rec.HEADS}
        each["states"] = llm4rec.encoder("users", *graphs, llm4rec.states)
        return {kind: parallel.encode_wrapper(f, self._work.mesh) for kind, f in each.items()}

    def _encode(
        self, kind: str, params: nnx.State, prompts: Prompts | LatePrompts, title: str
    ) -> np.ndarray:
        """float32 [n, R]: vectors of all prompts of `users` or `items`; [n, D + R]: `states` of users."""
        work, cfg = self._work, self._work.cfg.evaluate
        store = self.store if kind == "items" else None
        batches = loaders.encoding_batches(
            prompts, cfg.batch, work.devices, cfg.shapes, work.mine, store
        )
        with work.writer.progress(title, len(prompts), unit="prompts", compiles=True) as bar:
            parts = (batches, self._encoders[kind], self.frozen, params, work.mesh)
            return evaluate.encode(*parts, len(prompts), bar.update)

    def _vectors(
        self,
        params: nnx.State,
        users: LatePrompts,
        items: Prompts,
        item_ids: np.ndarray,
        title: str,
    ) -> Vectors:
        """Vectors of the prompts; rows of items that are not in `item_ids` stay 0."""
        user = self._encode("users", params, users, title)
        some = self._encode("items", params, items, title)
        table = np.zeros((self._data.dataset.catalog.size, some.shape[1]), np.float32)
        table[item_ids] = some
        return Vectors(self._scored(user), self._scored(table))

    def _scored(self, vectors: np.ndarray) -> np.ndarray:
        """As `evaluate.score` compares them (D45)."""
        return unit(vectors) if self._work.cfg.evaluate.score == "cosine" else vectors

    @property
    def vectors_stage(self) -> Stage:
        return self._work.stage("vectors", VECTORS)

    def encode(self) -> None:
        """Vectors of the test users and of every item, once."""
        stage = self.vectors_stage
        if self._work.done(stage):
            return
        prompts = self._user_prompts(self._data.test_histories(0))
        every = np.arange(1, self._data.dataset.catalog.size)
        items = self._tokens.builder.items(every)
        vectors = self._vectors(self._params, prompts, items, every, "test")

        def store(stage: Stage) -> dict[str, Any]:
            storage.write_arrays(stage.folder / VECTORS_FILE, user=vectors.user, item=vectors.item)
            return {}

        self._work.once(stage, store)
        self._tokens.say_trimmed("the test set")

    def encode_permuted(self) -> None:
        """Vectors of the test users whose histories are in another order, once for every permutation (E8).

        And how alike their hidden states stay: those are too wide to be kept.
        """
        numbers = range(1, self._work.cfg.order.permutations + 1)
        todo = [number for number in numbers if not self._work.done(self._permuted(number))]
        if not todo:
            return
        first, _ = self._states(0)
        for number in todo:
            hidden, user = self._states(number)
            arrays = {"user": self._scored(user), "alike": evaluate.similarity(first, [hidden])}
            # another program made them: what did not change is not to differ by its rounding
            same = ~orders.changed(*(self._data.test_histories(n) for n in (0, number)))
            arrays["user"][same], arrays["alike"][same] = self.vectors.user[same], 1.0

            def store(stage: Stage, arrays: dict[str, np.ndarray] = arrays) -> dict[str, Any]:
                storage.write_arrays(stage.folder / VECTORS_FILE, **arrays)
                return {}

            self._work.once(self._permuted(number), store)

    def _states(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """h_U float32 [U, D] and vectors [U, R] of the test users, their histories in order `number`."""
        prompts = self._user_prompts(self._data.test_histories(number))
        both = self._encode("states", self._params, prompts, f"order {number}")
        width = both.shape[1] - self._work.cfg.head.dim
        return both[:, :width], both[:, width:]

    def _of_permuted(self, name: str) -> list[np.ndarray]:
        """What `encode_permuted` kept, permutation by permutation."""
        numbers = range(1, self._work.cfg.order.permutations + 1)
        folders = [self._permuted(number).folder for number in numbers]
        return [storage.read_arrays(folder / VECTORS_FILE)[name] for folder in folders]

    @property
    def permuted(self) -> list[np.ndarray]:
        """User vectors of permuted histories, float32 [U, R] each."""
        return self._of_permuted("user")

    @property
    def alike(self) -> np.ndarray | None:
        """float64 [U]: cosine of h_U before and after, mean over permutations; None = there are none."""
        each = self._of_permuted("alike")
        return np.mean(each, axis=0) if each else None

    @property
    def vectors(self) -> Vectors:
        """Those of `encode`."""
        return Vectors(**storage.read_arrays(self.vectors_stage.folder / VECTORS_FILE))

    def judged(self) -> Judged:
        """Of the test users, as encoded."""
        found = self.vectors
        return Judged(found, [Vectors(user, found.item) for user in self.permuted], self.alike)
