"""The stages: prepare -> tokens -> teacher -> train -> encode -> evaluate. Each leaves an artefact keyed by the fields it depends on.

A finished stage is skipped, an interrupted one resumes. Stages of other configurations live beside each other in
one work folder, so that ablations share data, teacher and tokens.
"""

import contextlib
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llmsrec_jax import config, evaluate, loaders, parallel, processes, results, stores, train
from llmsrec_jax.checkpoint import Checkpoints, Lock, Stage, write_json
from llmsrec_jax.data import card as cards
from llmsrec_jax.data import sampling, shop, sources, splits, storage
from llmsrec_jax.data.interactions import UserSequences
from llmsrec_jax.data.slices import slices
from llmsrec_jax.data.splits import Dataset
from llmsrec_jax.evaluate import Vectors
from llmsrec_jax.keys import CANDIDATES, DATA, OWN_TOKENIZERS, TEACHER, TOKENS, TRAIN, VECTORS, Keys
from llmsrec_jax.llama import config as llama_config
from llmsrec_jax.llama import weights
from llmsrec_jax.memory import Job
from llmsrec_jax.memory_plan import Plan, choose
from llmsrec_jax.models import llm4rec, sasrec
from llmsrec_jax.prompts.prompts import LatePrompts, PromptBuilder, Prompts, within
from llmsrec_jax.prompts.tokens import ItemTokens, Tokenizer, check_vocabulary, training_texts
from llmsrec_jax.writer import Writer

TEACHER_KEY, LLM_KEY = 1, 2  # random streams
# a random backbone stands for pretrained weights: it does not change with the seed
BACKBONE_SEED = 0
TEACHER_ROWS = 512  # windows per encoding step
TRAINED_VOCABULARY = 1024  # of a tokenizer trained on the catalogue
VECTORS_FILE = "test.npz"


class Run:
    """One configuration in one work folder: its stages, and their artefacts, each loaded once."""

    def __init__(self, cfg: config.Config, workdir: Path, writer: Writer):
        self.cfg, self.workdir, self.writer = cfg, workdir, writer
        self.keys = Keys(cfg)
        self.mesh = parallel.make_mesh(cfg.mesh)
        self.devices, self.mine = self.mesh.parts, self.mesh.mine

    def stage(self, name: str, fields: tuple[str, ...]) -> Stage:
        return Stage(self.workdir, name, self.keys(fields))

    def _once(self, stage: Stage, make: Callable[[Stage], dict[str, Any]]) -> None:
        """Has the first process make the artefact and close the stage, unless it is finished; the others wait."""
        with processes.led(stage.name) as leads:
            if leads and not stage.finished:
                stage.finish(make(stage))
        if not stage.finished:
            raise ValueError(f"{stage.folder} is not seen by every process: share the work folder")

    def _trained(self, stage: Stage) -> bool:
        """Whether a stage in which all processes take part is finished."""
        return processes.agree(stage.finished)

    def _fit(self, stage: Stage, job: train.Job, state: train.State) -> None:
        """Trains, closes the stage and says how it went, with the number of programs it had to compile."""
        state = parallel.replicate(state, self.mesh)
        with Checkpoints(stage.folder, stage.key) as checkpoints:
            progress = train.fit(job, state, checkpoints, self.writer)
        self._once(stage, lambda stage: train.summary(progress))
        early = ", stopped early" if progress.stopped else ""
        self.writer.say(
            f"{job.stage}: best {job.metric} {progress.best:.4f} at step {progress.best_step} of "
            f"{job.total_steps}{early}; {parallel.programs(job.step)} compiled programs"
        )

    # prepare ------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Dataset, data card and the candidates of every evaluated user: made once, stored."""
        stage, cfg = self.stage("data", DATA), self.cfg.evaluate
        self._once(stage, self._make_data)
        self.writer.say(cards.render_card(stage.info["card"]))
        for split, limit in (("valid", cfg.validation_users), ("test", cfg.max_users)):
            make = partial(self._make_candidates, split=split, limit=limit)
            self._once(self.stage("candidates", CANDIDATES[split]), make)

    def _make_data(self, stage: Stage) -> dict[str, Any]:
        cfg, seed = self.cfg.data, self.cfg.seed
        catalog, interactions, counts = sources.load(cfg, seed)
        dataset, card = splits.prepare(catalog, interactions, cfg, seed, counts)
        dataset.save(stage.folder)
        return {"card": card}

    def _make_candidates(self, stage: Stage, split: str, limit: int) -> dict[str, Any]:
        cfg, seed = self.cfg.evaluate, self.cfg.seed
        users = splits.sample_users(self.dataset.eligible(split), limit, seed)
        options = (cfg.negatives, cfg.sampling, seed)
        candidates = sampling.candidates(self.dataset, split, users, *options)
        sampling.save_candidates(stage.folder, split, users, candidates)
        return {"users": len(users)}

    @cached_property
    def dataset(self) -> Dataset:
        return Dataset.load(self.stage("data", DATA).folder)

    def candidates(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """(users int32 [n], candidates int32 [n, C]) of `valid` or `test`."""
        return sampling.load_candidates(self.stage("candidates", CANDIDATES[split]).folder, split)

    # teacher ------------------------------------------------------------------------------------------------

    @property
    def _teacher_key(self) -> jax.Array:
        return jax.random.fold_in(jax.random.key(self.cfg.seed), TEACHER_KEY)

    @cached_property
    def _teacher_model(self) -> tuple[nnx.GraphDef, nnx.State]:
        rngs = nnx.Rngs(params=self._teacher_key)
        model = sasrec.SASRec(self.dataset.catalog.size, self.cfg.teacher, rngs)
        return nnx.split(model)

    def teacher(self) -> None:
        """Trains SASRec, or goes on training it; keeps the best checkpoint (D31)."""
        stage, cfg = self.stage("teacher", TEACHER), self.cfg.teacher
        if self._trained(stage):
            return
        graphdef, params = self._teacher_model
        batches = loaders.TeacherBatches(self.dataset, cfg, self.cfg.seed, self.devices, self.mine)
        per_device = partial(train.teacher_step, model=graphdef, cfg=self.cfg, axis=self.mesh.axis)
        step = parallel.train_wrapper(per_device, self.mesh)
        per_epoch = batches.order.steps_per_epoch
        total = per_epoch * cfg.epochs
        every = per_epoch * cfg.validate_every
        users, candidates = self.candidates("valid")
        histories = self.dataset.inputs("valid", users)

        def validate(state: train.State) -> dict[str, float]:
            vectors = self._teacher_vectors(state.params, histories)
            return evaluate.selection_metric(vectors, candidates, 10, self.cfg.evaluate.ties)

        job = train.Job(
            stage="teacher",
            key=stage.key,
            step=step,
            frozen=parallel.replicate(self._teacher_key, self.mesh),
            batches=partial(loaders.stream, batches),
            put=partial(parallel.put_batch, mesh=self.mesh),
            steps_per_epoch=per_epoch,
            total_steps=total,
            validate_at=[*range(every, total, every), total],
            validate=validate,
            metric="ndcg@10",
            patience=cfg.patience,
            lr_decay=1.0,
            batch_users=batches.order.batch,
            save_every_s=self.cfg.train.save_every_s,
        )
        state = train.init_state(params, cfg.lr, cfg.b2)
        self._fit(stage, job, state)

    @cached_property
    def _teacher_params(self) -> nnx.State:
        stage, cfg = self.stage("teacher", TEACHER), self.cfg.teacher
        like = train.init_state(self._teacher_model[1], cfg.lr, cfg.b2)
        with Checkpoints(stage.folder, stage.key) as checkpoints:
            state = checkpoints.best(like) if cfg.keep == "best" else checkpoints.latest(like)
        assert state is not None, "a finished stage has a checkpoint"
        return parallel.replicate(state[0].params, self.mesh)

    @cached_property
    def _teacher_encoder(self):
        graphdef, _ = self._teacher_model
        encode = lambda frozen, params, history: nnx.merge(graphdef, params).user_repr(history)
        return parallel.encode_wrapper(encode, self.mesh)

    def _teacher_users(self, params: nnx.State, histories: UserSequences) -> np.ndarray:
        """O_u, float32 [n, E]."""
        batches = loaders.window_batches(
            histories, self.cfg.teacher.max_len, TEACHER_ROWS, self.devices, self.mine
        )
        return evaluate.encode(
            batches, self._teacher_encoder, (), params, self.mesh, len(histories)
        )

    def _teacher_vectors(self, params: nnx.State, histories: UserSequences) -> Vectors:
        return Vectors(
            self._teacher_users(params, histories), np.asarray(params["item_embedding"][...])
        )

    # tokens -------------------------------------------------------------------------------------------------

    def tokens(self) -> None:
        """The tokenizer and the catalogue's titles as token ids, once."""
        self._once(self.stage("tokens", TOKENS), self._make_tokens)

    def _make_tokens(self, stage: Stage) -> dict[str, Any]:
        tokenizer = self._find_tokenizer()
        tokenizer.save(stage.folder / "tokenizer")
        items = ItemTokens.build(tokenizer, self.dataset.catalog, self.cfg.prompts.wording)
        items.save(stage.folder / "items")
        return {"fingerprint": tokenizer.fingerprint, "vocabulary": tokenizer.vocab_size}

    def require_titles(self) -> None:
        """Stops before the long work: LLM-SRec needs a catalogue with titles."""
        if not self.dataset.catalog.has_title.any():
            raise ValueError(
                "LLM-SRec reads item titles and this catalogue has none: set data.files.items "
                "(and data.files.title_column), or use --mode=teacher"
            )

    def require_even_batches(self) -> None:
        """Stops before the long work: the backbone and LLM-SRec's batches are shared out evenly over the devices."""
        self.mesh.weights.check(self.keys.backbone[0], self.cfg.llm.quant)
        if self._trained(self.stage("checkpoints", TRAIN)):
            return
        users, cfg = len(self.dataset.eligible("train")), self.cfg.train
        batch = min(cfg.batch, users, cfg.max_users or users)
        loaders.per_device(batch, self.devices, "train.batch")

    def _find_tokenizer(self) -> Tokenizer:
        wanted, catalog = self.cfg.llm.tokenizer, self.dataset.catalog
        folder = self.keys.backbone[1] if wanted in OWN_TOKENIZERS else llama_config.resolve(wanted)
        if wanted != "catalogue" and folder is not None:
            return Tokenizer.load(folder)
        texts = training_texts(catalog, self.cfg.prompts.wording, self.dataset.train.times)
        return Tokenizer.train(texts, TRAINED_VOCABULARY)

    @cached_property
    def builder(self) -> PromptBuilder:
        folder = self.stage("tokens", TOKENS).folder
        tokenizer = Tokenizer.load(folder / "tokenizer")
        wording, catalog = self.cfg.prompts.wording, self.dataset.catalog
        items = ItemTokens.load(folder / "items", tokenizer, catalog, wording)
        prompts = within(self.cfg.prompts, self.keys.backbone[0].max_positions)
        return PromptBuilder(tokenizer, items, catalog, prompts)

    # LLM-SRec -----------------------------------------------------------------------------------------------

    @cached_property
    def _users(self) -> np.ndarray:
        cfg = self.cfg.train
        return splits.sample_users(self.dataset.eligible("train"), cfg.max_users, self.cfg.seed)

    @cached_property
    def plan(self) -> Plan:
        """How training, if it is not finished, uses the memory."""
        over = self._trained(self.stage("checkpoints", TRAIN))
        data = self.builder, self.dataset, self._users
        return choose(Job.of(self.cfg, self.keys.backbone, *data, self.mesh, over), self.mesh)

    def require_memory(self) -> None:
        """Stops before the long work, where training would not fit."""
        if not self._trained(self.stage("checkpoints", TRAIN)):
            self.plan.require()
            self.writer.say(self.plan.report())
            self._say_trimmed("the catalogue")

    @cached_property
    def _backbone(self) -> tuple[nnx.GraphDef, nnx.State]:
        (shape, folder), tokenizer = self.keys.backbone, self.builder.tokenizer
        dtype, mode = weights.compute_dtype(self.cfg.llm.dtype), self.cfg.llm.quant
        sharding = self.mesh.weights
        if folder is None:
            self.writer.say(f"{self.cfg.llm.path}: a backbone of random weights, a toy")
            vocabulary = tokenizer.vocab_size
            llama = weights.random(shape, BACKBONE_SEED, dtype, vocabulary, mode, sharding)
        else:
            check_vocabulary(tokenizer, shape.vocab)
            llama = weights.load(folder, shape, dtype, mode, sharding)
        return nnx.split(llama)

    @cached_property
    def store(self) -> stores.ItemStore | None:
        """Keys and values of item prompts' prefixes, where they are kept."""
        cfg = (self.plan.apply(self.cfg) if self.cfg.llm.item_store == "auto" else self.cfg).llm
        items = self.builder.items(np.arange(1, self.dataset.catalog.size))
        with self.writer.progress("item prefixes", len(items), unit="items") as bar:
            return stores.of(cfg, self._backbone, items, self.mesh, bar.update)

    @cached_property
    def frozen(self) -> llm4rec.Frozen:
        items = jnp.asarray(self._teacher_params["item_embedding"][...])
        kept = None if self.store is None else self.store.resident
        return llm4rec.Frozen(self._backbone[1], parallel.replicate(items, self.mesh), kept)

    @cached_property
    def _llm_model(self) -> tuple[nnx.GraphDef, nnx.State]:
        key = jax.random.fold_in(jax.random.key(self.cfg.seed), LLM_KEY)
        backbone, rngs = nnx.merge(*self._backbone), nnx.Rngs(params=key)
        return nnx.split(llm4rec.new(self.cfg, backbone, rngs))

    @cached_property
    def _encoders(self) -> dict[str, Any]:
        graphs = self._llm_model[0], self._backbone[0]
        encoder = lambda kind: parallel.encode_wrapper(llm4rec.encoder(kind, *graphs), self.mesh)
        return {kind: encoder(kind) for kind in llm4rec.HEADS}

    def _llm_vectors(
        self,
        params: nnx.State,
        users: LatePrompts,
        items: Prompts,
        item_ids: np.ndarray,
        title: str,
    ) -> Vectors:
        """Vectors of the prompts; rows of items that are not in `item_ids` stay 0."""
        options = self.cfg.evaluate.batch, self.devices, self.cfg.evaluate.shapes, self.mine
        encoded = []
        for kind, prompts, store in (("users", users, None), ("items", items, self.store)):
            batches = loaders.encoding_batches(prompts, *options, store)
            with self.writer.progress(title, len(prompts), unit="prompts") as bar:
                parts = (batches, self._encoders[kind], self.frozen, params, self.mesh)
                encoded.append(evaluate.encode(*parts, len(prompts), bar.update))
        table = np.zeros((self.dataset.catalog.size, encoded[1].shape[1]), np.float32)
        table[item_ids] = encoded[1]
        vectors = Vectors(encoded[0], table)
        return vectors.cosine() if self.cfg.evaluate.score == "cosine" else vectors

    def train(self) -> None:
        """Trains LLM-SRec, or goes on training it; the best checkpoint by validation is kept."""
        stage, cfg = self.stage("checkpoints", TRAIN), self.cfg.train
        if self._trained(stage):
            return
        histories = self.dataset.inputs("train", self._users)
        cf_user_repr = self._teacher_users(self._teacher_params, histories)
        batches = loaders.LLMBatches(
            *(self.dataset, self._users, self.builder, cf_user_repr, self.plan.apply(self.cfg)),
            *(self.devices, self.mine, self.store),
        )
        graphdef, params = self._llm_model
        per_device = partial(
            train.llm_step,
            model=graphdef,
            llama=self._backbone[0],
            cfg=self.cfg,
            axis=self.mesh.axis,
        )
        step = parallel.train_wrapper(per_device, self.mesh)
        per_epoch = batches.order.steps_per_epoch
        valid_users, candidates = self.candidates("valid")
        prompts = self.builder.later(self.dataset.inputs("valid", valid_users))
        item_ids, k = np.unique(candidates), int(cfg.metric.partition("@")[2])
        items = self.builder.items(item_ids)

        def validate(state: train.State) -> dict[str, float]:
            vectors = self._llm_vectors(state.params, prompts, items, item_ids, "validation")
            return evaluate.selection_metric(vectors, candidates, k, self.cfg.evaluate.ties)

        job = train.Job(
            stage="train",
            key=stage.key,
            step=step,
            frozen=self.frozen,
            batches=partial(loaders.stream, batches),
            put=partial(parallel.put_batch, mesh=self.mesh),
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
        state = train.init_state(params, cfg.lr, cfg.b2)
        self._fit(stage, job, state)
        self._say_trimmed("training and validation")

    def _say_trimmed(self, when: str) -> None:
        if said := self.builder.report_trimmed(when):
            self.writer.say(said)

    def require_trained(self) -> None:
        """Stops before the long work: --mode=evaluate trains nothing."""
        if not self.stage("checkpoints", TRAIN).finished:
            raise ValueError(
                f"LLM-SRec is not trained for this configuration in {self.workdir}: "
                "run --mode=train (or run) first"
            )

    def _llm_params(self) -> nnx.State:
        stage, cfg = self.stage("checkpoints", TRAIN), self.cfg.train
        like = train.init_state(self._llm_model[1], cfg.lr, cfg.b2)
        with Checkpoints(stage.folder, stage.key) as checkpoints:
            state = checkpoints.best(like)
        assert state is not None, "a finished stage has a best checkpoint"
        return parallel.replicate(state[0].params, self.mesh)

    # evaluate -----------------------------------------------------------------------------------------------

    def encode(self) -> None:
        """LLM-SRec's vectors of the test users and of every item, once."""
        stage = self.stage("vectors", VECTORS)
        if self._trained(stage):
            return
        users, _ = self.candidates("test")
        prompts = self.builder.later(self.dataset.inputs("test", users))
        every = np.arange(1, self.dataset.catalog.size)
        items = self.builder.items(every)
        vectors = self._llm_vectors(self._llm_params(), prompts, items, every, "test")

        def store(stage: Stage) -> dict[str, Any]:
            storage.write_arrays(stage.folder / VECTORS_FILE, user=vectors.user, item=vectors.item)
            return {}

        self._once(stage, store)
        self._say_trimmed("the test set")

    def evaluate(self, with_llm: bool) -> None:
        """The test set, once, for every model on the same candidates; writes results.json and shows tables."""
        users, candidates = self.candidates("test")
        histories = self.dataset.inputs("test", users)
        models: dict[str, tuple[Vectors, tuple[str, ...]]] = {
            "popularity": (evaluate.popularity(self.dataset, users), DATA),
            "teacher": (self._teacher_vectors(self._teacher_params, histories), TEACHER),
        }
        if with_llm:
            stored = storage.read_arrays(self.stage("vectors", VECTORS).folder / VECTORS_FILE)
            models[results.label(self.cfg)] = (Vectors(**stored), TRAIN)
        if self.cfg.data.source == "shop":
            made = shop.generate(self.cfg.data.shop, self.cfg.seed)
            models["bayes bound"] = (Vectors(*made.bayes(self.dataset, users, "test")), DATA)
        with processes.led("evaluation") as leads:
            if leads:
                self._judge(models, users, candidates, histories)

    def _judge(
        self,
        models: dict[str, tuple[Vectors, tuple[str, ...]]],
        users: np.ndarray,
        candidates: np.ndarray,
        histories: UserSequences,
    ) -> None:
        """Ranks, records and shows; `models`: {name: (vectors, settings they depend on)}."""
        masks = slices(self.dataset, "test", users)
        targets = self.dataset.targets("test", users)
        seen = (lambda row: histories[row][0]) if self.cfg.evaluate.mask_seen else None
        rows = []
        for name, (vectors, fields) in models.items():
            evaluate.check_finite(
                name, vectors, self.dataset.user_keys[users], self.dataset.catalog.keys
            )
            counts = {
                "sampled": evaluate.sampled_ranking(vectors, candidates),
                "full": evaluate.full_ranking(vectors, targets, seen),
            }
            common = results.common(self.cfg, self.keys(fields), self.dataset.name, candidates)
            rows += evaluate.records(name, counts, masks, self.cfg.evaluate, common)
        merged = results.merge(self.workdir / "results.json", rows)
        self.writer.say(results.tables(merged, rows[-1]))
        shown = {name: vectors for name, (vectors, _) in models.items()}
        for row in range(min(self.cfg.evaluate.show_users, len(users))):
            slots = self.cfg.prompts.history_len
            self.writer.say(evaluate.case(shown, self.dataset, users, targets, row, slots))


TRAIN_STEPS = (
    *(Run.prepare, Run.require_titles, Run.require_even_batches),
    *(Run.tokens, Run.require_memory, Run.teacher, Run.train),
)
ENCODED = (Run.encode, partial(Run.evaluate, with_llm=True))
STEPS = {  # mode -> what it does, in order
    "prepare": (Run.prepare,),
    "teacher": (Run.prepare, Run.teacher, partial(Run.evaluate, with_llm=False)),
    "train": TRAIN_STEPS,
    "evaluate": (Run.require_trained, *TRAIN_STEPS, *ENCODED),
    "run": (*TRAIN_STEPS, *ENCODED),
}


def run(cfg: config.Config, workdir: Path, mode: str = "run", distributed: str = "off") -> None:
    """Runs the stages of `mode` in `workdir`; `distributed` as in processes.connect.

    Raises:
      ValueError: a wrong configuration or bad data; the message says what to do.
      train.Interrupted: SIGINT or SIGTERM; the same command goes on from there.
    """
    config.validate(cfg)
    parallel.keep_memory()
    parallel.keep_compiled()
    processes.connect(distributed)
    parallel.keep_precise()
    cfg = config.apply(cfg, {"llm.dtype": weights.chosen(cfg.llm.dtype)})
    cfg = config.apply(cfg, {"llm.item_store_dtype": stores.chosen(cfg.llm)})
    with contextlib.ExitStack() as stack:
        with processes.led("work folder") as leads:
            if leads:
                stack.enter_context(Lock(workdir))
                write_json(workdir / "config.json", config.to_dict(cfg))
        writer = stack.enter_context(Writer(workdir, silent=not leads))
        job = Run(cfg, workdir, writer)
        for step in STEPS[mode]:
            step(job)
            if processes.preempted():  # JAX took the signal: nothing else would stop these stages
                raise KeyboardInterrupt("signal 15: between two stages")
