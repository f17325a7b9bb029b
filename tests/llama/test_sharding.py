"""Who holds which part of the backbone, and that nobody ever holds all of it."""

import dataclasses
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from llmsrec_jax.llama import config, weights
from llmsrec_jax.llama.model import shapes
from llmsrec_jax.llama.sharding import RULES, WHOLE, Sharding
from tests.llama import grids
from tests.llama.test_weights import CFG, checkpoint
from tests.llama.test_weights import check as check_weights

TINY = config.SIZES["tiny"]


def sharding(**axes: int) -> Sharding:
    devices = np.array(jax.devices()[: int(np.prod([*axes.values()]))])
    kinds = (AxisType.Auto,) * len(axes)
    return Sharding(Mesh(devices.reshape(*axes.values()), tuple(axes), axis_types=kinds))


def test_every_weight_has_a_rule_and_every_rule_a_weight():
    assert set(RULES) == set(shapes(replace(TINY, tied=False, writes=True)))
    with pytest.raises(ValueError, match="no rule .* 'router': add one to llama.sharding.RULES"):
        sharding(fsdp=2).spec("router")
    with pytest.raises(ValueError, match="no rule"):
        WHOLE.place("router", np.ones(2))


def test_axes_that_are_not_there_are_not_in_a_rule():
    """By the devices' own word: in a mesh without them every device has all."""
    assert sharding(data=2).spec("q") == P(None, None, None)
    assert sharding(data=2, fsdp=2).spec("o") == P(None, None, None, "fsdp")
    assert sharding(tensor=2).spec("table") == P(None, "tensor")
    assert sharding(fsdp=2, tensor=2).spec("table") == P(None, ("fsdp", "tensor"))


@pytest.mark.parametrize(
    ("axes", "parts"),
    [
        ({"fsdp": 2}, {"q": (3, 16, 4, 8), "down": (3, 48, 16), "table": (64, 16)}),
        ({"tensor": 2}, {"q": (3, 32, 2, 8), "down": (3, 24, 32), "table": (64, 16)}),
        ({"fsdp": 2, "tensor": 2}, {"o": (3, 2, 8, 16), "up": (3, 16, 24), "table": (64, 8)}),
    ],
)
def test_every_device_holds_its_share(axes, parts):
    llama = weights.random(TINY, 0, jnp.float32, sharding=sharding(**axes))
    devices, held = int(np.prod([*axes.values()])), dict.fromkeys(jax.devices(), 0)
    arrays = {name: leaf[...] for name, leaf in llama.layers.items()}
    for name, array in (arrays | {"table": llama.table[...]}).items():
        assert {s.data.shape for s in array.addressable_shards} == {
            parts.get(name, array.addressable_shards[0].data.shape)
        }
        for shard in array.addressable_shards:
            held[shard.device] += shard.data.size * ("norm" not in name)
    total = sum(np.prod(s) for n, s in shapes(TINY).items() if "norm" not in n)
    assert [n for n in held.values() if n] == [total // devices] * devices


def test_a_checkpoint_is_read_into_the_same_numbers(tmp_path):
    from safetensors.numpy import save_file

    tensors = checkpoint()
    save_file(tensors, tmp_path / "model.safetensors")
    shared = weights.load(tmp_path, CFG, jnp.float32, sharding=sharding(fsdp=2, tensor=2))
    check_weights(shared, tensors)
    assert shared.layers["gate"][...].addressable_shards[0].data.shape == (2, 6, 35)


@pytest.mark.parametrize(
    ("axes", "changes", "message"),
    [
        ({"tensor": 3}, {}, "mesh.tensor=3: must divide the heads of the backbone, 4"),
        ({"tensor": 4}, {}, "mesh.tensor=4: must divide the key and value heads of .*, 2"),
        ({"tensor": 2}, {"ff": 49}, "mesh.tensor=2: must divide the feed-forward width .*, 49"),
        ({"fsdp": 3}, {}, "mesh.fsdp=3 x mesh.tensor=1: must divide the width .*, 32"),
        ({"fsdp": 2, "tensor": 2}, {"d": 34}, "mesh.fsdp=2 x mesh.tensor=2: .* width .*, 34"),
    ],
)
def test_axes_divide_what_they_cut(axes, changes, message):
    with pytest.raises(ValueError, match=message):
        sharding(**axes).check(dataclasses.replace(TINY, **changes))
    sharding(data=3).check(TINY)


def test_int8_scales_lie_beside_their_values():
    """By the axes of the outputs; a layer is whole again along fsdp, to the bit."""
    cut = sharding(fsdp=2, tensor=2)
    one, shared = (
        weights.random(TINY, 0, jnp.float32, mode="w8", sharding=s) for s in (WHOLE, cut)
    )
    for name in ("q", "o", "down"):
        want, found = one.layers[name][...], shared.layers[name][...]
        np.testing.assert_array_equal(found.values, want.values)
        np.testing.assert_array_equal(found.scale, want.scale)
    shapes = lambda name: [
        leaf.addressable_shards[0].data.shape for leaf in jax.tree.leaves(shared.layers[name][...])
    ]
    assert shapes("q") == [(3, 16, 2, 8), (3, 2, 8)]  # inputs along fsdp, heads along tensor
    assert shapes("o") == [(3, 2, 8, 16), (3, 16)]  # heads along tensor, outputs along fsdp
    with pytest.raises(ValueError, match="mesh.tensor=2: llm.quant=w8a8 rounds a token"):
        cut.check(TINY, "w8a8")
    sharding(fsdp=2).check(TINY, "w8a8")


@pytest.mark.parametrize("axes", [{"fsdp": 2}, {"tensor": 2}, {"fsdp": 2, "tensor": 2}])
def test_embedding_is_exact(axes):
    """Devices along fsdp ask for different tokens."""
    cut, ids = sharding(**axes), np.arange(2 * 3 * 5).reshape(2, 3, 5) % TINY.vocab
    graph, state = nnx.split(weights.random(TINY, 0, jnp.float32, sharding=cut))
    rows = P("fsdp") if "fsdp" in axes else P()
    specs = nnx.State({"table": cut.spec("table"), "norm": P(), "layers": P()})
    embed = jax.shard_map(
        lambda state, ids: nnx.merge(graph, state).embed(ids),
        mesh=cut.mesh,
        in_specs=(specs, rows),
        out_specs=rows,
        check_vma=False,
    )
    whole = weights.random(TINY, 0, jnp.float32)
    np.testing.assert_array_equal(jax.jit(embed)(state, ids), whole.embed(jnp.asarray(ids)))


@pytest.mark.parametrize("remat", ["none", "names", "inputs"])
def test_what_was_lent_is_not_kept(remat):
    """Between forward and backward pass no device has whole layers, stacked: they are lent once more."""
    cut, B, T = sharding(fsdp=2), 1, 4
    graph, state = nnx.split(weights.random(TINY, 0, jnp.float32, sharding=cut))
    specs = nnx.State(
        {
            "table": cut.spec("table"),
            "norm": P(),
            "layers": {name: cut.spec(name) for name in state["layers"]},
        }
    )

    @partial(jax.shard_map, mesh=cut.mesh, in_specs=(specs, P()), out_specs=P(), check_vma=False)
    def gradient(state, x):
        llama, length = nnx.merge(graph, state), jnp.full((B,), T)
        last = length[:, None] - 1
        hidden = lambda x: grids.extend(llama, x, length, None, last, remat)
        return jax.grad(lambda x: hidden(x).sum())(x)

    program = str(jax.make_jaxpr(gradient)(state, jnp.ones((B, T, TINY.d))))
    D, F = TINY.d, TINY.ff
    assert f"f32[{D},{F}] = all_gather" in program and f"f32[{TINY.layers},{D // 2},{F}]" in program
    assert f"f32[{TINY.layers - 1},{D},{F}]" not in program
