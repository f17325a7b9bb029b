"""Weights of a LLaMA: streamed from Hugging Face safetensors by a name table, or random.

Loading fills one stacked array at a time and hands it to the device before it starts the next, so that host memory holds the
model about once. The lm_head is read only where tokens are predicted: retrieval needs none.
"""

import dataclasses
import math
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llmsrec_jax import hf_folder
from llmsrec_jax.llama import quant
from llmsrec_jax.llama.config import LlamaConfig
from llmsrec_jax.llama.model import Llama, shapes
from llmsrec_jax.llama.sharding import WHOLE, Sharding


class Rule(NamedTuple):
    """Tensors of the checkpoint -> one of our arrays. Matrices are [out, in] there and [in, out] here."""

    tensor: str  # its name; {} = layer number
    name: str
    inputs: int = 0  # axes of our array (after the layer axis) that are inputs; 0 = a vector or a table, not transposed


RULES = (
    Rule("model.embed_tokens.weight", "table"),
    Rule("lm_head.weight", "lm_head"),
    Rule("model.norm.weight", "norm"),
    Rule("model.layers.{}.input_layernorm.weight", "attn_norm"),
    Rule("model.layers.{}.self_attn.q_proj.weight", "q", 1),
    Rule("model.layers.{}.self_attn.k_proj.weight", "k", 1),
    Rule("model.layers.{}.self_attn.v_proj.weight", "v", 1),
    Rule("model.layers.{}.self_attn.o_proj.weight", "o", 2),
    Rule("model.layers.{}.post_attention_layernorm.weight", "mlp_norm"),
    Rule("model.layers.{}.mlp.gate_proj.weight", "gate", 1),
    Rule("model.layers.{}.mlp.up_proj.weight", "up", 1),
    Rule("model.layers.{}.mlp.down_proj.weight", "down", 1),
)
INPUTS = {rule.name: rule.inputs for rule in RULES}
LM_HEAD = r"lm_head\.weight"
IGNORED = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
# random weights: mild feed-forwards scramble the tokens least (a linear probe at the last position finds one of 10 words in a
# 12-token title in 60 % of cases, 10 % by chance; size toy). Queries keep their scale: trained slots and Out tokens can then
# choose what is attended to, and so learn what came last.
GAINS = {"down": 0.3}


def chosen(word: str) -> str:
    """`llm.dtype` with auto resolved: bf16 on accelerators, fp32 on CPU (D10)."""
    return {"auto": "fp32" if jax.default_backend() == "cpu" else "bf16"}.get(word, word)


def compute_dtype(word: str) -> Any:
    """Of the layers, for `llm.dtype`."""
    return {"fp32": jnp.float32, "bf16": jnp.bfloat16}[chosen(word)]


class _Slot(NamedTuple):
    """Where a tensor of the checkpoint goes: array, row (None = the whole of it), and its shape in the checkpoint."""

    rule: Rule
    row: int | None
    shape: tuple[int, ...]


def load(
    folder: str | Path,
    cfg: LlamaConfig,
    dtype: Any,
    mode: quant.Mode = "none",
    sharding: Sharding = WHOLE,
) -> Llama:
    """Reads one or many safetensors into a Llama of `dtype`, shared out over the devices as `sharding` says.

    mode: what becomes of the layers' products; they are rounded here, on the host, so the device never holds more.
    Raises ValueError naming tensor and file if a tensor is missing, unexpected or mis-shaped, or a file is damaged.
    """
    folder = Path(folder)
    weights = {}
    slots = _slots(cfg)
    with ExitStack() as stack:
        readers = hf_folder.open_tensors(folder, stack)
        want = {tensor: slot.shape for tensor, slot in slots.items()}
        model = f"{cfg.layers} layers of a plain LlamaForCausalLM"
        ignored = IGNORED if "lm_head" in shapes(cfg) else f"{LM_HEAD}|{IGNORED}"
        files = hf_folder.match(readers, want, ignored, model, folder)
        # largest first: host and device both hold an array while little else is there yet
        for name, shape in sorted(shapes(cfg).items(), key=lambda item: -math.prod(item[1])):
            array = _empty(shape, _host_dtype(name, dtype, mode))
            for tensor, slot in slots.items():
                if slot.rule.name == name:
                    target = array if slot.row is None else array[slot.row]
                    source = readers[files[tensor]].get_tensor(tensor)
                    _fill(target, source, slot.rule.inputs)
            try:
                weights[name] = sharding.place(name, _rounded(name, array, mode))
            except ValueError as error:
                raise ValueError(f"{folder}: {name}: {error}") from None
    return Llama(cfg, weights, sharding)


def random(
    cfg: LlamaConfig,
    seed: int,
    dtype: Any,
    vocab: int | None = None,
    mode: quant.Mode = "none",
    sharding: Sharding = WHOLE,
) -> Llama:
    """Random weights through which tokens stay readable: matrices N(0, (gain/sqrt(inputs))^2), embeddings N(0, 1), norms 1.

    vocab: size of the tokenizer in use, where it is not the one of `cfg`. mode, sharding: as for `load`.
    """
    if vocab is not None:
        cfg = dataclasses.replace(cfg, vocab=vocab)
    weights = {}
    for name, shape in shapes(cfg).items():
        if "norm" in name:
            weights[name] = sharding.place(name, np.ones(shape, dtype))
            continue
        fan_in = math.prod(shape[1 : 1 + INPUTS[name]])  # 1 for a table
        array = _empty(shape, _host_dtype(name, dtype, mode))
        _fill_normal(array, [seed, zlib.crc32(name.encode())], GAINS.get(name, 1.0) * fan_in**-0.5)
        weights[name] = sharding.place(name, _rounded(name, array, mode))
    return Llama(cfg, weights, sharding)


def _host_dtype(name: str, dtype: Any, mode: quant.Mode) -> np.dtype:
    """What is rounded to int8 is not rounded to `dtype` before."""
    return np.dtype(np.float32 if INPUTS[name] and mode != "none" else dtype)


def _rounded(name: str, array: np.ndarray, mode: quant.Mode) -> Any:
    if INPUTS[name] and mode != "none":
        return quant.quantise(array, INPUTS[name], mode)
    return array


def _fill_normal(array: np.ndarray, seed: list[int], std: float) -> None:
    """Fills blocks of about a layer in parallel, each from its own generator: the same numbers on every machine."""
    rows = array.reshape(-1, array.shape[-1])
    block = max(1, (1 << 24) // rows.shape[1])

    def fill(start: int) -> None:
        target = rows[start : start + block]
        draw = np.random.default_rng([*seed, start]).standard_normal(target.shape, np.float32)
        target[...] = np.multiply(draw, np.float32(std), out=draw)

    with ThreadPoolExecutor() as pool:
        list(pool.map(fill, range(0, len(rows), block)))


def _slots(cfg: LlamaConfig) -> dict[str, _Slot]:
    """Every tensor name of the checkpoint -> its slot."""
    slots, every = {}, shapes(cfg)
    for rule in RULES:
        if rule.name not in every:
            continue
        stacked = every[rule.name]
        for row in range(cfg.layers) if "{}" in rule.tensor else [None]:
            shape = stacked if row is None else stacked[1:]
            if rule.inputs:
                shape = (math.prod(shape[rule.inputs :]), math.prod(shape[: rule.inputs]))
            slots[rule.tensor.format(row)] = _Slot(rule, row, shape)
    return slots


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Aligned to a cache line: the CPU backend then takes the array over instead of copying it."""
    size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + size].view(dtype).reshape(shape)


def _fill(target: np.ndarray, tensor: np.ndarray, inputs: int) -> None:
    """Writes a checkpoint tensor into its place, transposed where ours is [in, out]; the cast is part of the copy."""
    if not inputs:
        target[...] = tensor
        return
    target = target.reshape(math.prod(target.shape[:inputs]), -1)  # a view
    for row in range(0, len(tensor), 64):  # in strips that stay in cache: three times as fast
        strip = tensor[row : row + 64]
        target[:, row : row + 64] = strip.astype(target.dtype).T
