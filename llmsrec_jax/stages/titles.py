"""train, encode: an LLM that is asked for the title of the next item, among candidates (E1)."""

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from llmsrec_jax import choices, evaluate, loaders, parallel, title_loaders, train
from llmsrec_jax.checkpoint import Stage
from llmsrec_jax.data import orders, sampling, storage
from llmsrec_jax.data.interactions import UserSequences
from llmsrec_jax.evaluate import Choices
from llmsrec_jax.keys import VECTORS
from llmsrec_jax.memory import located
from llmsrec_jax.models import titles
from llmsrec_jax.prompts.prompts import LatePrompts
from llmsrec_jax.prompts.titles import Question
from llmsrec_jax.schema import HIT_CONSTRAINED, HIT_FREE, HIT_VALID, VALID
from llmsrec_jax.stages.reader import Judged, Reader
from llmsrec_jax.title_memory import TitleJob

FILE = "test.npz"


class Asked(NamedTuple):
    """What users are asked."""

    prompts: LatePrompts  # U of them
    shown: np.ndarray  # int [U, C] the candidates, in the order in which they are shown
    read_at: np.ndarray  # int64 [U, C] where among these the title of each candidate is read


class TitleRec(Reader):
    """Title generation: the projectors and LoRA train."""

    held = (*Reader.held, "_encoder")

    def require_memory(self) -> None:
        """Stops before the long work, where training would not fit, or titles are too long for the prompts."""
        super().require_memory()
        alike = 0 if self._work.done(self._stage) else self._tokens.titles.alike
        if alike:
            self._work.writer.say(
                f"{alike} items share their title with another one, as far as prompts.title_tokens shows it: in a list they tie"
            )

    @property
    def _job(self) -> TitleJob:
        work, dataset = self._work, self._data.dataset
        users, candidates = self._data.candidates("valid")
        judged = dataset.inputs("valid", users), Question(candidates, candidates)
        llama = located(work.keys.backbone, self._tokens.builder.tokenizer.vocab_size)
        prompts = self._tokens.titles, self._samples, judged
        return TitleJob.of(work.cfg, llama, *prompts, work.mesh)

    def train(self) -> None:
        """Trains, or goes on training; the best checkpoint by validation is kept."""
        work = self._work
        if work.done(self._stage):
            return
        told = self._teacher.users(self._samples) if work.cfg.prompts.user_repr else None
        builder = self._tokens.titles
        batches = title_loaders.TitleBatches(
            *(self._samples, builder, told, self.plan.apply(work.cfg)),
            *(work.devices, work.mine),
        )
        users, candidates = self._data.candidates("valid")
        histories = self._data.dataset.inputs("valid", users)
        asked = self._ask("valid", users, histories, candidates)

        def validate(state: train.State) -> dict[str, float]:
            scores = Choices(self._read(state.params, asked, "validation")["score"])
            return self._validated(scores, candidates)

        self._fit(batches, validate, objective=titles.loss)

    # read -----------------------------------------------------------------------------------------------------

    @cached_property
    def _encoder(self) -> Any:
        return parallel.encode_wrapper(
            titles.encoder(self._model[0], self._backbone[0]), self._work.mesh
        )

    def _ask(
        self, split: str, users: np.ndarray, histories: UserSequences, candidates: np.ndarray
    ) -> Asked:
        """`users` int [U], with these histories, which of their candidates int [U, C] comes next."""
        cfg = self._work.cfg
        order = sampling.shown(users, candidates.shape[1], cfg.seed, split)
        shown = np.take_along_axis(candidates, order, axis=1)
        told = self._teacher.users(histories) if cfg.prompts.user_repr else None
        prompts = self._tokens.titles.later(histories, Question(shown, shown), told)
        # equal titles are equal: where they stand in their row, they are rounded differently
        of = self._tokens.titles.same[shown]
        first_equal = (of[:, :, None] == of[:, None]).argmax(axis=2)
        read_at = np.take_along_axis(first_equal, np.argsort(order, axis=1), axis=1)
        return Asked(prompts, shown, read_at)

    def _read(self, params: nnx.State, asked: Asked, title: str) -> dict[str, np.ndarray]:
        """score float64 [U, C], the log-likelihoods of candidates; and bool [U, C] what greedy decoding writes, `constrained`
        to them and `free`.
        """
        work, cfg, (prompts, shown, read_at) = self._work, self._work.cfg.evaluate, asked
        most = int(self._tokens.titles.asked(Question(shown, shown)).max())
        batches = loaders.encoding_batches(
            *(prompts, cfg.batch, work.devices, cfg.shapes, work.mine), outs=most
        )
        chosen = lambda rows, of_tokens: self._chosen(shown[rows], of_tokens)
        with work.writer.progress(title, len(prompts), unit="prompts", compiles=True) as bar:
            parts = batches, self._encoder, self.frozen, params, work.mesh, len(prompts)
            found = evaluate.encode(*parts, bar.update, chosen).reshape(*shown.shape, 3)
        score, *wrote = np.moveaxis(np.take_along_axis(found, read_at[..., None], axis=1), -1, 0)
        return {"score": score, "constrained": wrote[0] > 0, "free": wrote[1] > 0}

    def _chosen(self, shown: np.ndarray, of_tokens: np.ndarray) -> np.ndarray:
        """float64 [n, C * 3]: log-likelihood, whether it is written within the candidates and whether freely, of candidates int [n, C].

        of_tokens: float32 [n, M * 2], of the tokens of all titles of a row, end to end: log-probability, and whether it is the highest.
        """
        ids, length = self._tokens.titles.tokens(shown)
        pairs, each = of_tokens.reshape(len(shown), -1, 2), length.sum(axis=1)
        placed = np.zeros((*ids.shape, 2), np.float32)
        real = np.arange(ids.shape[-1]) < length[..., None]
        placed[real] = pairs[np.arange(pairs.shape[1]) < each[:, None]]
        log_prob, first = placed[..., 0], placed[..., 1]
        found = [
            choices.likelihood(log_prob, length),
            choices.constrained(ids, log_prob, length),
            choices.free(first, length),
        ]
        return np.stack(found, axis=-1).reshape(len(shown), -1)

    @property
    def _read_stage(self) -> Stage:
        return self._work.stage("titles", VECTORS)

    def encode(self) -> None:
        """What is thought of the test users' candidates, once."""
        self._encode(self._read_stage, 0)
        self._tokens.say_trimmed("the test set")

    def encode_permuted(self) -> None:
        """The same for histories in other orders, once for every permutation (E8)."""
        for number in range(1, self._work.cfg.order.permutations + 1):
            self._encode(self._permuted(number), number)

    def _encode(self, stage: Stage, number: int) -> None:
        if self._work.done(stage):
            return
        users, candidates = self._data.candidates("test")
        title = f"order {number}" if number else "test"
        histories = self._data.test_histories(number)
        asked = self._ask("test", users, histories, candidates)
        found = self._read(self._params, asked, title)
        if number:  # another batch read them: what did not change is not to differ by its rounding
            before = storage.read_arrays(self._read_stage.folder / FILE)
            same = ~orders.changed(self._data.test_histories(0), histories)
            for name, values in found.items():
                values[same] = before[name][same]

        def store(stage: Stage) -> dict[str, Any]:
            storage.write_arrays(stage.folder / FILE, **found)
            return {}

        self._work.once(stage, store)

    def judged(self) -> Judged:
        """Of the test users, as read."""
        found = storage.read_arrays(self._read_stage.folder / FILE)
        numbers = range(1, self._work.cfg.order.permutations + 1)
        others = [storage.read_arrays(self._permuted(n).folder / FILE) for n in numbers]
        target = np.zeros(len(found["score"]), np.int64)  # column 0 of candidates
        valid = found["free"].any(axis=1)
        free = choices.hits(found["free"], target)
        answers = {
            VALID: valid.astype(np.float64),
            HIT_FREE: free,
            HIT_VALID: np.where(valid, free, np.nan),
            HIT_CONSTRAINED: choices.hits(found["constrained"], target),
        }
        permuted = [Choices(other["score"]) for other in others]
        return Judged(Choices(found["score"]), permuted, None, answers)
