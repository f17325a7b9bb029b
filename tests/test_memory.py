"""The estimate against XLA's own account of the training step, compiled but never run: the weights are shapes."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llmsrec_jax import config, memory, parallel, stores, train
from llmsrec_jax.benchmark import made
from llmsrec_jax.data.samples import Samples
from llmsrec_jax.llama import weights
from llmsrec_jax.llama.config import LlamaConfig
from llmsrec_jax.llama.kv import KV
from llmsrec_jax.llama.lora import TARGETS
from llmsrec_jax.llama.model import Llama, shapes
from llmsrec_jax.llama.quant import Quantised
from llmsrec_jax.llama.sharding import Sharding
from llmsrec_jax.loaders import LLMBatches
from llmsrec_jax.memory import GIB, RetrievalJob
from llmsrec_jax.models import llm4rec
from llmsrec_jax.stores import ItemStore

# about the ratios of widths that a 3B has
BACKBONE = LlamaConfig(vocab=1024, d=256, layers=4, heads=8, kv_heads=2, head_dim=32, ff=704)
SETTINGS: dict[str, Any] = {
    "llm.dtype": "fp32",
    "head.hidden": 256,
    "train.batch": 16,
    "train.length_groups": 1,
    "train.shapes": 1,
    "mesh.devices": 1,
}
SHORT = {"prompts.history_len": 2}  # no tail long enough for attention row by row
EVERY = {"lora.rank": 16, "lora.targets": tuple(TARGETS)}
Shape = jax.ShapeDtypeStruct


def abstract_llama(
    cfg: config.LLM, sharding: Sharding, backbone: LlamaConfig = BACKBONE
) -> tuple[nnx.GraphDef, nnx.State]:
    """Of shapes alone."""
    dtype = weights.compute_dtype(cfg.dtype)

    def weight(name: str, shape: tuple[int, ...]) -> Any:
        inputs = weights.INPUTS[name]
        if cfg.quant == "none" or not inputs:
            return Shape(shape, dtype)
        scale = Shape((shape[0], *shape[1 + inputs :]), jnp.float32)
        return Quantised(Shape(shape, jnp.int8), scale, cfg.quant == "w8a8")

    found = {name: weight(name, shape) for name, shape in shapes(backbone).items()}
    return nnx.split(Llama(backbone, found, sharding))


def account(program: Any) -> int:
    """Bytes that a compiled program needs, by XLA's account."""
    found = program.memory_analysis()
    sizes = found.argument_size_in_bytes + found.temp_size_in_bytes
    return sizes + found.output_size_in_bytes - found.alias_size_in_bytes


class Case:
    """A configuration over made data with real lengths."""

    def __init__(self, changes: dict[str, Any]):
        cfg = config.apply(config.Config(), {**SETTINGS, "train.parts": 1, **changes})
        shape = made.SHAPES["Industrial_and_Scientific"].smaller(300)
        data = made.Made(shape, 0, BACKBONE.vocab, cfg.prompts)
        users, self.cfg = data.dataset.eligible("train"), cfg
        samples = Samples.of(data.dataset, users, cfg.train.targets)
        self.mesh = parallel.make_mesh(cfg.mesh)
        self.job = RetrievalJob.of(cfg, (BACKBONE, None), data.builder, samples, self.mesh)
        store = None
        if cfg.llm.item_store == "hbm":
            lengths = data.builder.items(np.arange(1, data.dataset.catalog.size)).prefix_len
            tokens = int(lengths.sum()) + stores.BLOCK_TOKENS
            kept = Shape(
                (BACKBONE.layers, tokens, BACKBONE.kv_heads, BACKBONE.head_dim), jnp.float32
            )
            store = ItemStore(np.cumsum([0, *lengths]), KV(kept, kept), on_host=False)
        vectors = np.zeros((len(samples), cfg.teacher.d), np.float32)
        parts = samples, data.builder, vectors, cfg, self.mesh.parts
        self.batches = LLMBatches(*parts, store=store)
        self.kept = None if store is None else store.resident
        self.items = Shape((data.dataset.catalog.size, cfg.teacher.d), jnp.float32)

    def counted(self) -> int:
        """Bytes, by XLA's account, of the step that holds any batch."""
        llama, frozen = abstract_llama(self.cfg.llm, self.mesh.weights)
        new = lambda: llm4rec.of(self.cfg, BACKBONE, (0.0, 1.0), nnx.Rngs(params=0))
        model, params = nnx.split(nnx.eval_shape(new))
        state = jax.eval_shape(lambda params: train.init_state(params, 1e-4, 0.98), params)
        step = partial(train.llm_step, model=model, llama=llama, cfg=self.cfg, axis=self.mesh.axis)
        rows, items, candidates = (each[0] for each in self.batches.members(0))
        batch = self.batches._shard(rows, items, candidates, self.batches.shapes[-1], None)
        batch = jax.tree.map(lambda x: Shape((self.mesh.parts, *x.shape), x.dtype), batch)
        key = jax.eval_shape(lambda: jax.random.key(0)) if self.cfg.lora.trains else None
        frozen = llm4rec.Frozen(frozen, self.items, self.kept, key)
        return account(
            parallel.train_wrapper(step, self.mesh).lower(frozen, state, batch).compile()
        )

    def estimated(self) -> int:
        cfg = self.cfg
        return self.job.needs(cfg.train.parts, cfg.llm.item_store, self.batches.shapes[-1]).program


@pytest.mark.parametrize(
    "changes",
    [
        {**SHORT, "llm.quant": "w8"},
        {**SHORT, "prompts.user_repr": True, "train.targets": "all", "train.parts": 2},
        {**SHORT, "llm.remat": "inputs", "train.parts": 2, "llm.item_store": "hbm"},
        {**SHORT, "lora.rank": 8},
        pytest.param({**SHORT, "lora.rank": 8, "llm.remat": "none"}, marks=pytest.mark.slow),
        pytest.param(
            {**SHORT, "lora.rank": 8, "llm.remat": "inputs", "train.parts": 2},
            marks=pytest.mark.slow,
        ),
        pytest.param({**SHORT, **EVERY}, marks=pytest.mark.slow),
        pytest.param({**SHORT, **EVERY, "lora.dropout": 0.0}, marks=pytest.mark.slow),
        pytest.param({**SHORT, "llm.remat": "none"}, marks=pytest.mark.slow),
        pytest.param(
            {**SHORT, "mesh.devices": 4, "mesh.fsdp": 2, "mesh.tensor": 2}, marks=pytest.mark.slow
        ),
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"prompts.history_len": 4, "train.targets": "all"}, marks=pytest.mark.slow),
        pytest.param({"llm.remat": "inputs", "train.length_groups": 3}, marks=pytest.mark.slow),
        pytest.param({"llm.remat": "none", "train.parts": 4}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_estimate_is_within_15_percent(changes):
    case = Case(changes)
    assert case.estimated() == pytest.approx(case.counted(), rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["names", "inputs", "none"])
def test_the_estimate_where_attention_is_not_row_by_row(remat, monkeypatch):
    """As on accelerators."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    case = Case({"llm.remat": remat})
    assert case.estimated() == pytest.approx(case.counted(), rel=0.15)


@pytest.fixture(scope="module")
def case() -> Case:
    return Case({**SHORT, "train.length_groups": 3, "train.shapes": 4})


def test_likely_steps_need_less_than_the_longest_prompts(case):
    likely = case.job.needs(1, "recompute")
    assert likely.step < case.job.needs(1, "recompute", case.batches.shapes[-1]).step
    assert case.job.worst(1, "recompute") > likely.total
    cheapest = case.job.needs(1, "recompute", case.batches.shapes[0])
    assert cheapest.step <= likely.step


def test_what_parts_stores_and_precision_save(case, monkeypatch):
    whole = case.job.needs(1, "recompute")
    assert case.job.needs(4, "recompute").step < 0.5 * whole.step
    hbm, host = (case.job.needs(1, store) for store in ("hbm", "host"))
    assert hbm.step == host.step < whole.step
    assert hbm.store > 0 == host.store == whole.store and host.batch > 20 * whole.batch
    assert whole.filling == 0 < host.filling == hbm.filling
    half = case.job.changed({"llm.dtype": "bf16"}).needs(1, "recompute")
    assert half.weights == whole.weights / 2 and half.trained == whole.trained
    assert half.step == whole.step  # on CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    half, whole = (
        case.job.changed({"llm.dtype": d}).needs(1, "recompute") for d in ("bf16", "fp32")
    )
    assert 0.5 < half.step / whole.step < 0.75  # what trains stays in float32


def test_what_prompts_tell_is_counted(case):
    """A projector with its gradient and moments, its activations at every user, and the vectors."""
    plain, cfg = case.job.needs(1, "recompute"), case.cfg
    told = case.job.changed({"prompts.user_repr": True}).needs(1, "recompute")
    width, narrow, users = BACKBONE.d, cfg.teacher.d, cfg.train.batch
    projector = 4 * (narrow * width + width + 2 * width + width * width + width)
    assert told.trained - plain.trained == 3 * projector
    assert told.batch - plain.batch == 4 * users * narrow
    assert told.step - plain.step == projector + 4 * memory.PROJECTED * users * width


def test_what_lora_trains_is_counted(case):
    """A and B of every layer with gradient and moments; no prefix is constant in a step, and none is stored."""
    plain = case.job.needs(1, "recompute")
    lora = case.job.changed({"lora.rank": 2, "lora.targets": ("q_proj", "down_proj")})
    needs, cfg = lora.needs(1, "recompute"), BACKBONE
    added = 4 * cfg.layers * 2 * (2 * cfg.d + cfg.ff + cfg.d)
    assert needs.trained - plain.trained == 3 * added
    assert needs.step > 1.5 * plain.step and needs.encoding == plain.encoding
    (shape, *_), _ = lora._shapes(1, "recompute")
    assert shape.user_tokens.prefix == shape.item_tokens.prefix == 0


def test_the_width_of_what_stands_for_items_is_counted(case):
    """Joint embeddings are wider or narrower than the teacher's: the table, and f_I with its moments."""
    plain, narrow = case.job.needs(1, "recompute"), case.cfg.teacher.d
    joint = {"alignment.text": "any", "alignment.middle": narrow + 3}
    wider = case.job.changed(joint).needs(1, "recompute")
    assert wider.teacher - plain.teacher == 4 * 3 * (len(case.job.items[0]) + 1)
    assert wider.trained - plain.trained == 3 * 4 * 3 * BACKBONE.d


def test_more_devices_hold_less_each(case):
    alone = case.job.needs(1, "recompute")
    shared = case.job.changed({"mesh.fsdp": 2})
    assert (shared.devices, shared.rows) == (2, case.job.rows // 2)
    needs = shared.needs(1, "recompute")
    assert 0.5 * alone.weights < needs.weights < 0.51 * alone.weights  # norms are on every device
    assert needs.step < 0.85 * alone.step


@pytest.mark.parametrize(
    "changes", [{"train.batch": 15, "mesh.fsdp": 2}, {"mesh.fsdp": 2, "mesh.mode": "pmap"}], ids=str
)
def test_what_no_mesh_can_do(case, changes):
    with pytest.raises(ValueError, match="not "):
        case.job.changed(changes)


# what is free ------------------------------------------------------------------------------------------------


class Device:
    process_index = 0

    def __init__(self, **stats: int):
        self.memory_stats = lambda: stats


def mesh_of(*devices: Any) -> Any:
    grid = np.array(devices, object)
    return parallel.DeviceMesh(type("Mesh", (), {"devices": grid})())  # pyright: ignore


def test_the_fullest_device_counts():
    one, other = Device(bytes_limit=100, bytes_in_use=30), Device(bytes_limit=90, bytes_in_use=40)
    assert memory.available(mesh_of(one, other), 0.0) == 50
    assert memory.available(mesh_of(one, other), 0.5) == GIB // 2


def test_devices_without_an_account_share_the_machine(monkeypatch):
    monkeypatch.setattr(memory, "host_memory", lambda: 120)
    assert memory.available(mesh_of(Device(), Device(), Device()), 0.0) == 40
    monkeypatch.setattr(memory, "host_memory", lambda: None)
    assert memory.available(mesh_of(Device()), 0.0) is None


def test_the_machine_says_what_is_free():
    free = memory.host_memory()
    assert free is None or 0 < free < 1 << 50
