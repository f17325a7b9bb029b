"""What the weights take is what they take; what passes take is tested on whole training steps (tests/test_memory.py)."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from llmsrec_jax import config, parallel
from llmsrec_jax.llama import config as llama_config
from llmsrec_jax.llama import weights
from llmsrec_jax.llama.footprint import Footprint, Pass
from llmsrec_jax.llama.sharding import FSDP, TENSOR

TINY = llama_config.size("tiny")


def footprint(shape=TINY, dtype=jnp.float32, quantised=False, fsdp=1, tensor=1, platform="cpu"):
    return Footprint(shape, dtype, quantised, {FSDP: fsdp, TENSOR: tensor}, platform)


@pytest.mark.parametrize("mode", ["none", "w8"])
@pytest.mark.parametrize("axes", [{}, {"devices": 4, "fsdp": 2, "tensor": 2}], ids=str)
def test_weights_by_the_byte(mode, axes):
    """Of a device's part."""
    mesh = parallel.make_mesh(config.Mesh(**{"devices": 1, **axes}))
    llama = weights.random(TINY, 0, jnp.bfloat16, mode=mode, sharding=mesh.weights)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(nnx.state(llama)))
    shared = {name: axes.get(name, 1) for name in ("fsdp", "tensor")}
    assert footprint(dtype=jnp.bfloat16, quantised=mode != "none", **shared).weights == held


def test_a_3b_backbone_in_bfloat16():
    shape = llama_config.size("llama-3.2-3b")
    assert footprint(shape, jnp.bfloat16).weights == 2 * 3_212_749_824
    products = 3_212_749_824 - shape.vocab * shape.d
    rounded = footprint(shape, jnp.bfloat16, quantised=True).weights - 2 * shape.vocab * shape.d
    assert products < rounded < 1.01 * products  # a byte each, and scales
    # what 27 of 28 layers keep of a token that they need not make again: queries, keys and values, middle, gate and up
    one = Pass([(1, 0, 1000)], (), 0, 1000)
    llm = footprint(shape, jnp.bfloat16, platform="gpu")
    saved = llm.training(one, "names") - llm.training(one, "inputs")
    gate_and_up = 2 * 8192
    assert saved == 1000 * 2 * (27 * (3072 + 2 * 1024 + 3072 + gate_and_up) - gate_and_up)


def test_heads_are_shared_out_and_so_are_their_activations():
    one = Pass([(4, 16, 16)], [(4, 0, 16)], 64, 64)
    whole, half = footprint().forward(one), footprint(tensor=2).forward(one)
    assert 0.4 * whole < half < 0.9 * whole
