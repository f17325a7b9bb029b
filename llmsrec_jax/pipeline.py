"""The order of the stages: prepare -> tokens -> teacher (-> alignment) -> train -> encode -> evaluate (-> transfer). Each leaves an artefact keyed by what it depends on.

A finished stage is skipped, an interrupted one resumes. Stages of other configurations live beside each other in
one work folder, so that ablations share data, teacher and tokens.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from llmsrec_jax import config, parallel, processes, results, rules, stores
from llmsrec_jax.checkpoint import Lock, write_json
from llmsrec_jax.llama import weights
from llmsrec_jax.schema import STUDIES
from llmsrec_jax.stages.alignment import Alignment, require_encoder
from llmsrec_jax.stages.entrants import Trained
from llmsrec_jax.stages.judgement import Judgement
from llmsrec_jax.stages.llm import LLMRec
from llmsrec_jax.stages.preparation import Prepared
from llmsrec_jax.stages.reader import Reader
from llmsrec_jax.stages.teacher import Teacher
from llmsrec_jax.stages.titles import TitleRec
from llmsrec_jax.stages.tokens import Tokens
from llmsrec_jax.stages.transfer import Transfer, elsewhere
from llmsrec_jax.stages.work import Work
from llmsrec_jax.writer import Writer


class Run:
    """One configuration in one work folder: its stages, and their artefacts, each loaded once."""

    def __init__(self, cfg: config.Config, workdir: Path, writer: Writer):
        self.work = Work(cfg, workdir, writer)
        self.data = Prepared(self.work)
        self.tokens = Tokens(self.work, self.data)
        self.teacher = Teacher(self.work, self.data)
        self.alignment = Alignment(self.work, self.data, self.teacher)
        first = config.before(cfg)
        self.before = None if first is None else Run(first, workdir, writer)
        above = None if self.before is None else self.before.llm
        reads = self.work, self.data, self.tokens, self.teacher, self.alignment
        retrieval = LLMRec(*reads, above) if cfg.prompts.retrieves else None
        self.llm: Reader = retrieval or TitleRec(*reads, above)
        trained = self.work, self.data, self.teacher
        self.judgement = Judgement(self.work, self.data, Trained(*trained, self.llm), STUDIES[0])
        self.teacher_judgement = Judgement(
            self.work, self.data, Trained(*trained, None), STUDIES[0]
        )
        there, home = elsewhere(cfg), (self.data, self.tokens, self.teacher)
        self.transfer = None
        if there is not None and retrieval is not None:
            self.transfer = Transfer(self.work, there, *home, retrieval)


Step = Callable[[Run], object]


def each(run: Run, steps: Iterable[Step]) -> None:
    """In order; raises what `run` raises."""
    for step in steps:
        step(run)
        if processes.preempted():  # JAX took the signal: nothing else would stop these stages
            raise KeyboardInterrupt("signal 15: between two stages")


PREPARED: Step = lambda run: run.data.prepare()
ORDERED: Step = lambda run: run.data.require_order()
TAUGHT: Step = lambda run: run.teacher.train()
FITTING: tuple[Step, ...] = (ORDERED, lambda run: run.teacher.require_memory())
READY: tuple[Step, ...] = (  # up to the long work, which is not begun where it could not be ended
    lambda run: run.tokens.require_titles(),
    lambda run: run.llm.require_even_batches(),
    lambda run: run.alignment.require_even_batches(),
    lambda run: run.tokens.tokenize(),
    lambda run: run.alignment.encode(),
    lambda run: run.alignment.require_memory(),
    lambda run: run.llm.require_memory(),
)
ENCODER: Step = lambda run: require_encoder(run.work.cfg)
HERE: tuple[Step, ...] = (ENCODER, PREPARED)
BEFORE: tuple[Step, ...] = (  # bad data are found before anything is trained
    *HERE,
    lambda run: run.transfer and run.transfer.prepare(),
)
TRAIN: tuple[Step, ...] = (
    *FITTING,
    *READY,
    lambda run: run.before and each(run.before, (PREPARED, ORDERED, *READY)),
    TAUGHT,
    lambda run: run.alignment.train(),
    lambda run: run.before and run.before.llm.train(),  # the teacher is the same
    lambda run: run.llm.train(),
)
EVALUATE: tuple[Step, ...] = (
    lambda run: run.llm.encode(),
    lambda run: run.llm.encode_permuted(),
    lambda run: run.judgement.judge(),
    lambda run: run.transfer and run.transfer.evaluate(),
)
STEPS: dict[str, tuple[Step, ...]] = {  # mode -> what it does, in order
    "prepare": (PREPARED,),
    "teacher": (PREPARED, *FITTING, TAUGHT, lambda run: run.teacher_judgement.judge()),
    "train": (*HERE, *TRAIN),
    "evaluate": (ENCODER, lambda run: run.llm.require_trained(), *BEFORE, *TRAIN, *EVALUATE),
    "run": (*BEFORE, *TRAIN, *EVALUATE),
}


def settled(cfg: config.Config) -> config.Config:
    """With the words that mean something else on other machines replaced: results name what was used."""
    cfg = config.apply(cfg, {"llm.dtype": weights.chosen(cfg.llm.dtype)})
    return config.apply(cfg, {"llm.item_store_dtype": stores.chosen(cfg.llm)})


def join(distributed: str = "off") -> None:
    """The devices set up, the processes joined; writes nothing."""
    parallel.keep_memory()
    parallel.keep_compiled()
    processes.connect(distributed)
    parallel.keep_precise()


@contextlib.contextmanager
def opened(cfg: config.Config, workdir: Path, distributed: str = "off") -> Iterator[Writer]:
    """The processes joined, the work folder locked, its config.json written; `distributed` as in processes.connect.

    Raises:
      ValueError: the folder is in use, or holds results of another schema.
    """
    join(distributed)
    with contextlib.ExitStack() as stack:
        with processes.led("work folder") as leads:
            if leads:
                stack.enter_context(Lock(workdir))
                results.read(workdir / "results.json")  # of another schema: before the long work
                write_json(workdir / "config.json", config.to_dict(settled(cfg)))
        yield stack.enter_context(Writer(workdir, silent=not leads))


def perform(job: Run, mode: str) -> None:
    """The stages of `mode`, in order; raises what `run` raises."""
    each(job, STEPS[mode])


def run(cfg: config.Config, workdir: Path, mode: str = "run", distributed: str = "off") -> None:
    """Runs the stages of `mode` in `workdir`; `distributed` as in processes.connect.

    Raises:
      ValueError: a wrong configuration or bad data; the message says what to do.
      train.Interrupted: SIGINT or SIGTERM; the same command goes on from there.
    """
    rules.validate(cfg)
    with opened(cfg, workdir, distributed) as writer:
        perform(Run(settled(cfg), workdir, writer), mode)
