"""transfer: what was trained on one dataset, evaluated on another one without training there (Table 7, E13)."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llmsrec_jax import config, evaluate, parallel, results
from llmsrec_jax.checkpoint import Stage
from llmsrec_jax.evaluate import Vectors
from llmsrec_jax.keys import DATA, JUDGED_ELSEWHERE, TEACHER, TOKENS, TRAIN, TRANSFERRED
from llmsrec_jax.schema import STUDIES
from llmsrec_jax.stages.entrants import Model
from llmsrec_jax.stages.judgement import Judgement
from llmsrec_jax.stages.llm import LLMRec
from llmsrec_jax.stages.preparation import Prepared
from llmsrec_jax.stages.teacher import Teacher
from llmsrec_jax.stages.tokens import Tokens
from llmsrec_jax.stages.unseen_items import Place, embeddings, known
from llmsrec_jax.stages.work import Work


def elsewhere(cfg: config.Config) -> config.Config | None:
    """The same configuration of the other dataset; None = there is none."""
    named = cfg.transfer
    if not (named.category or named.files.interactions):
        return None
    data = replace(
        cfg.data,
        source="amazon" if named.category else "files",
        **{name: getattr(named, name) for name in ("category", "files", "name", "user_share")},
    )
    order = replace(cfg.order, permutations=0)  # nothing is permuted there
    return replace(cfg, data=data, order=order, transfer=config.Transfer())


class VisitingTeacher(Teacher):
    """The teacher as it was trained at home, with the item table of another catalogue."""

    def __init__(self, home: Teacher, work: Work, data: Prepared, table: Callable[[], np.ndarray]):
        super().__init__(work, data)
        self._home, self._table = home, table

    @cached_property
    def _model(self) -> tuple[nnx.GraphDef, nnx.State]:
        return self._home._model

    @cached_property
    def _params(self) -> nnx.State:
        params = jax.tree.map(lambda x: x, self._home._params)  # a tree of its own
        table = parallel.replicate(jnp.asarray(self._table()), self._work.mesh)
        params["item_embedding"] = params["item_embedding"].replace(table)
        return params


class VisitingLLM(LLMRec):
    """LLM-SRec as it was trained at home, reading another catalogue."""

    def __init__(
        self, home: LLMRec, work: Work, data: Prepared, tokens: Tokens, teacher: VisitingTeacher
    ):
        super().__init__(work, data, tokens, teacher, home._alignment)
        self._home = home

    @cached_property
    def _backbone(self) -> tuple[nnx.GraphDef, nnx.State]:
        return self._home._backbone

    @property
    def store(self) -> None:
        """None: every item there is read once."""
        return None

    @property
    def vectors_stage(self) -> Stage:
        return self._work.stage("transferred", TRANSFERRED)


class Transfer:
    """The other dataset, and what is said of the models there."""

    def __init__(
        self,
        work: Work,
        there: config.Config,
        data: Prepared,
        tokens: Tokens,
        teacher: Teacher,
        llm: LLMRec,
    ):
        """work to llm: of the dataset that is trained on. there: `elsewhere` of its configuration."""
        self._work, self._llm = work, llm
        self.work = Work(there, work.workdir, work.writer)
        self.data = Prepared(self.work)
        self._home = Place(data, tokens, teacher)
        there_tokens = Tokens(self.work, self.data, tokens)
        self._there = Place(self.data, there_tokens, Teacher(self.work, self.data))
        self._teacher = VisitingTeacher(teacher, work, self.data, self._table)
        self._reader = VisitingLLM(llm, work, self.data, there_tokens, self._teacher)
        self.judgement = Judgement(work, self.data, self, STUDIES[1])

    def prepare(self) -> None:
        """The other data; stops before the long work where they cannot be used."""
        try:
            self.data.prepare()
            self._there.tokens.require_titles()
        except ValueError as error:
            raise ValueError(
                f"the dataset of transfer, where data. is transfer.: {error}"
            ) from error
        catalog, rule = self.data.dataset.catalog, self._work.cfg.transfer.known
        count = len(known(self._home.data.dataset, catalog, rule)[0])
        self._work.writer.say(
            f"transfer: {count} of its {catalog.size - 1} items are known by key and title (transfer.known={rule})"
        )

    @property
    def encoding(self) -> Stage:
        """Of the vectors of users and items there."""
        return self._reader.vectors_stage

    @property
    def trains(self) -> bool:
        """Whether it needs a teacher of its own."""
        return self._work.cfg.transfer.unseen == "target"

    def evaluate(self) -> None:
        """Encodes users and items there, once, and judges."""
        self._there.tokens.tokenize()
        self._reader.encode()
        self.judgement.judge()

    def _table(self) -> np.ndarray:
        return embeddings(self._home, self._there, self._llm, self._work.cfg)

    # who is judged --------------------------------------------------------------------------------------------

    @property
    def fields(self) -> tuple[str, ...]:
        return JUDGED_ELSEWHERE

    @property
    def names(self) -> dict[str, str]:
        cfg = self._work.cfg
        where = self._home.data.dataset.name, cfg.transfer.unseen
        here = results.names(cfg).items()
        moved = {model: results.transferred(name, *where) for model, name in here}
        return {"popularity": "popularity", **moved}

    def models(self) -> dict[str, Model]:
        """The floor is that of the other dataset: counts are no training."""
        keys, trained_on = self._work.keys, self._home.data.dataset.name
        users, _ = self.data.candidates("test")
        popular = evaluate.popularity(self.data.dataset, users)
        seen = Vectors(self._teacher.users(self.data.test_histories(0)), self._teacher.items)
        reads = (*TOKENS, "llm.dtype") if self._work.cfg.transfer.unseen == "text" else ()
        return {
            "popularity": Model(self.data.dataset.name, self.work.keys(DATA), popular, []),
            "teacher": Model(trained_on, keys((*TEACHER, *reads, "transfer")), seen, []),
            "llm_srec": Model(trained_on, keys((*TRAIN, "transfer")), self._reader.vectors, []),
        }
