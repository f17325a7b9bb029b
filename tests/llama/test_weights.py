"""Checkpoints in and out of order: one file, several, other dtypes, and every way they can be wrong."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from llmsrec_jax.llama import config, weights
from llmsrec_jax.llama.model import shapes
from tests.llama import grids

CFG = config.LlamaConfig(vocab=20, d=12, layers=2, heads=4, kv_heads=2, head_dim=4, ff=70)


def checkpoint(dtype=np.float32):
    """Tensors as Hugging Face names and lays them out: matrices [out, in]."""
    rng = np.random.default_rng(0)
    D, NH, KH, F = 12, 16, 8, 70
    layer = {
        "input_layernorm": (D,),
        "self_attn.q_proj": (NH, D),
        "self_attn.k_proj": (KH, D),
        "self_attn.v_proj": (KH, D),
        "self_attn.o_proj": (D, NH),
        "post_attention_layernorm": (D,),
        "mlp.gate_proj": (F, D),
        "mlp.up_proj": (F, D),
        "mlp.down_proj": (D, F),
    }
    names = {
        f"model.layers.{i}.{name}.weight": shape for i in range(2) for name, shape in layer.items()
    }
    names |= {"model.embed_tokens.weight": (20, D), "model.norm.weight": (D,)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in names.items()}


def arrays(llama):
    return {
        k: np.asarray(v) for k, v in {"table": llama.table[...], "norm": llama.norm[...]}.items()
    } | {name: np.asarray(leaf[...]) for name, leaf in llama.layers.items()}


def check(llama, tensors, dtype=np.float32):
    ours = arrays(llama)
    assert {name: array.shape for name, array in ours.items()} == shapes(CFG)
    assert {array.dtype for array in ours.values()} == {np.dtype(dtype)}
    cast = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    np.testing.assert_array_equal(ours["table"], cast["model.embed_tokens.weight"])
    np.testing.assert_array_equal(ours["norm"], cast["model.norm.weight"])
    x, head = np.arange(12.0), np.arange(16.0)
    for i in range(2):
        get = lambda name, i=i: cast[f"model.layers.{i}.{name}.weight"]
        np.testing.assert_array_equal(ours["attn_norm"][i], get("input_layernorm"))
        np.testing.assert_array_equal(ours["mlp_norm"][i], get("post_attention_layernorm"))
        np.testing.assert_array_equal(ours["q"][i], get("self_attn.q_proj").T.reshape(12, 4, 4))
        np.testing.assert_array_equal(ours["v"][i], get("self_attn.v_proj").T.reshape(12, 2, 4))
        np.testing.assert_array_equal(ours["up"][i], get("mlp.up_proj").T)
        np.testing.assert_array_equal(ours["down"][i], get("mlp.down_proj").T)
        if dtype == np.float32:
            k = np.einsum("d,dkh->kh", x, ours["k"][i]).ravel()
            np.testing.assert_allclose(k, get("self_attn.k_proj") @ x, rtol=1e-4, atol=1e-4)
            gate = np.einsum("d,df->f", x, ours["gate"][i])
            np.testing.assert_allclose(gate, get("mlp.gate_proj") @ x, rtol=1e-4, atol=1e-4)
            o = np.einsum("nh,nhd->d", head.reshape(4, 4), ours["o"][i])
            np.testing.assert_allclose(o, get("self_attn.o_proj") @ head, rtol=1e-4, atol=1e-4)


def test_one_file(tmp_path):
    tensors = checkpoint()
    save_file(tensors, tmp_path / "model.safetensors")
    check(weights.load(tmp_path, CFG, jnp.float32), tensors)


def shard(folder, tensors):
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_many_files_with_and_without_an_index(tmp_path):
    tensors = checkpoint()
    shard(tmp_path, tensors)
    (tmp_path / "consolidated.safetensors").write_bytes(b"not listed, not read")
    check(weights.load(tmp_path, CFG, jnp.float32), tensors)
    (tmp_path / "consolidated.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").unlink()
    check(weights.load(tmp_path, CFG, jnp.float32), tensors)


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("wanted", [np.float32, ml_dtypes.bfloat16])
def test_dtypes_are_cast(tmp_path, stored, wanted):
    tensors = checkpoint(stored)
    save_file(tensors, tmp_path / "model.safetensors")
    check(weights.load(tmp_path, CFG, wanted), tensors, wanted)


def test_head_and_buffers_are_ignored(tmp_path):
    tensors = checkpoint()
    more = {
        "lm_head.weight": np.zeros((20, 12), np.float32),
        "model.layers.1.self_attn.rotary_emb.inv_freq": np.zeros(2, np.float32),
    }
    save_file(tensors | more, tmp_path / "model.safetensors")
    check(weights.load(tmp_path, CFG, jnp.float32), tensors)


K0 = "model.layers.0.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    "change, message",
    [
        ({K0: None}, rf"tensor {K0} \[8, 12\] is missing from model.safetensors"),
        ({K0: None, "model.norm.weight": None}, "and 1 more is missing"),
        (
            {K0: np.zeros((12, 8), "f4")},
            rf"{K0} has shape \[12, 8\], config.json asks for \[8, 12\]",
        ),
        (
            {"model.layers.2.mlp.up_proj.weight": np.zeros(1, "f4")},
            r"unexpected tensor model.layers.2",
        ),
        (
            {"model.layers.0.self_attn.q_proj.bias": np.zeros(16, "f4")},
            "unexpected tensor .*q_proj.bias",
        ),
        ({K0: np.zeros((8, 12), np.int8)}, "k_proj.weight is I8; quantised"),
    ],
)
def test_foreign_tensors_are_named(tmp_path, change, message):
    tensors = {k: v for k, v in {**checkpoint(), **change}.items() if v is not None}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message) as error:
        weights.load(tmp_path, CFG, jnp.float32)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.999])
def test_truncated_file(tmp_path, keep):
    file = tmp_path / "model.safetensors"
    save_file(checkpoint(), file)
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged or incomplete .*download"):
        weights.load(tmp_path, CFG, jnp.float32)


def test_unfinished_downloads(tmp_path):
    with pytest.raises(ValueError, match="no safetensors in"):
        weights.load(tmp_path, CFG, jnp.float32)
    shard(tmp_path, checkpoint())
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"index.json lists b.safetensors, which is not there"):
        weights.load(tmp_path, CFG, jnp.float32)
    for text in ("{", "{}", "[]", '{"weight_map": 3}'):
        (tmp_path / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ValueError, match="index.json: damaged"):
            weights.load(tmp_path, CFG, jnp.float32)


def test_random_is_seeded_and_takes_the_vocabulary_of_the_tokenizer():
    make = lambda seed, **options: weights.random(CFG, seed, jnp.float32, **options)
    first, again, other = arrays(make(0)), arrays(make(0)), arrays(make(1))
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name])
        if "norm" not in name:
            assert (array != other[name]).any()
    assert (first["gate"] != first["up"]).all()
    assert (first["gate"][0] != first["gate"][1]).all()
    larger = make(0, vocab=33)
    assert larger.cfg.vocab == 33 and larger.table[...].shape == (33, 12)
    np.testing.assert_array_equal(make(0, vocab=None).table[...], first["table"])


def test_random_draws_do_not_depend_on_the_dtype():
    whole = arrays(weights.random(CFG, 0, jnp.bfloat16))
    single = arrays(weights.random(CFG, 0, jnp.float32))
    for name, array in whole.items():
        np.testing.assert_array_equal(array, single[name].astype(ml_dtypes.bfloat16))


def test_random_backbone_lets_tokens_through():
    """A least-squares probe at the last of 24 positions finds which of ten words the prompt held, far above chance."""
    llama = weights.random(config.SIZES["toy"], 0, jnp.float32)
    rng = np.random.default_rng(0)
    n, T = 1500, 24
    ids = np.tile(rng.integers(0, 1000, T), (n, 1))
    ids[:, 6:18] = rng.integers(10, 1000, (n, 12))
    word = rng.integers(0, 10, n)
    ids[np.arange(n), rng.integers(6, 18, n)] = word
    graphdef, state = nnx.split(llama)

    @jax.jit
    def last(state, ids):
        llama = nnx.merge(graphdef, state)
        full = jnp.full(n, T)
        out = full[:, None] - 1
        return grids.extend(llama, llama.embed(ids), full, None, out, "none")[:, 0]

    x = np.c_[last(state, ids), np.ones(n)]
    probe = np.linalg.lstsq(x[:1000], np.eye(10)[word[:1000]], rcond=None)[0]
    assert ((x[1000:] @ probe).argmax(1) == word[1000:]).mean() > 0.5
