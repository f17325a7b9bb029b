"""Parity with transformers' torch LLaMA on tiny checkpoints: hidden states, and gradients with respect to input embeddings.

The checkpoints are made from the names of their tensors, so they need not be stored. `golden.npz` holds what torch answered, for
machines without torch; written by `python -m tests.llama.test_hf`.
"""

import json
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from llmsrec_jax import losses
from llmsrec_jax.llama import config, weights

GOLDEN = Path(__file__).with_name("golden.npz")
BASE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": True,
}
# original is short, so that short, stretched and in-between wavelengths all occur
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES = {
    "plain, untied, no grouping": {
        "rope_theta": 10_000.0,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    "llama3 rope as in transformers 4": {"rope_theta": 500_000.0, "rope_scaling": LLAMA3},
    "llama3 rope as in transformers 5": {"rope_parameters": {**LLAMA3, "rope_theta": 1000.0}},
    "wide heads, one key head": {
        "rope_theta": 10_000.0,
        "head_dim": 16,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-2,
        "num_hidden_layers": 3,
    },
}
B, T = 2, 21
COEFFICIENT = np.random.default_rng(1).standard_normal((B, T, 32)).astype(np.float32)
IDS = np.random.default_rng(2).integers(0, 50, (B, T))


def write(folder: Path, raw: dict) -> None:
    """A checkpoint whose every number follows from the tensor's name."""
    (folder / "config.json").write_text(json.dumps(raw))
    cfg = config.from_hf(folder)
    NH, KH = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
    tensors = {"model.embed_tokens": (50, 32), "model.norm": (32,)}
    if not cfg.tied:
        tensors["lm_head"] = (50, 32)
    for i in range(cfg.layers):
        layer = {
            "input_layernorm": (32,),
            "self_attn.q_proj": (NH, 32),
            "self_attn.k_proj": (KH, 32),
            "self_attn.v_proj": (KH, 32),
            "self_attn.o_proj": (32, NH),
            "post_attention_layernorm": (32,),
            "mlp.gate_proj": (56, 32),
            "mlp.up_proj": (56, 32),
            "mlp.down_proj": (32, 56),
        }
        tensors |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    save_file(
        {f"{name}.weight": _draw(name, shape) for name, shape in tensors.items()},
        folder / "model.safetensors",
    )


def _draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    return (1 + 0.2 * draw if "norm" in name else 0.3 * draw).astype(np.float32)


def ask_torch(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states after the final norm, and the gradient of their weighted sum with respect to the embeddings."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).model
    x = model.embed_tokens(torch.tensor(IDS)).detach().requires_grad_()
    hidden = model(inputs_embeds=x, use_cache=False).last_hidden_state
    (hidden * torch.tensor(COEFFICIENT)).sum().backward()
    return hidden.detach().numpy(), x.grad.numpy()


def ask_us(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    cfg = config.from_hf(folder)
    graphdef, state = nnx.split(weights.load(folder, cfg, jnp.float32))
    full = jnp.full(B, T)

    @jax.jit
    def run(state, ids):
        llama = nnx.merge(graphdef, state)

        def weighted(x):
            hidden = llama.hidden(x, full)
            return (hidden * COEFFICIENT).sum(), hidden

        grad, hidden = jax.grad(weighted, has_aux=True)(llama.embed(ids))
        return hidden, grad

    hidden, grad = run(state, IDS)
    return np.asarray(hidden), np.asarray(grad)


def check(got, want):
    for ours, theirs, limit in zip(got, want, (5e-6, 1e-5), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=limit * np.abs(theirs).max())


@pytest.mark.parametrize("case", CASES)
def test_golden(tmp_path, case):
    write(tmp_path, BASE | CASES[case])
    with np.load(GOLDEN) as golden:
        check(ask_us(tmp_path), (golden[f"{case}/hidden"], golden[f"{case}/grad"]))


@pytest.mark.torch
@pytest.mark.parametrize("case", CASES)
def test_torch(tmp_path, case):
    pytest.importorskip("torch")
    write(tmp_path, BASE | CASES[case])
    check(ask_us(tmp_path), ask_torch(tmp_path))


@pytest.mark.torch
@pytest.mark.parametrize("tied", [True, False])
def test_probabilities_of_tokens(tmp_path, tied):
    """By the table of embeddings, or by an lm_head, which is read only where tokens are predicted."""
    torch = pytest.importorskip("torch")
    from transformers import LlamaForCausalLM

    write(tmp_path, BASE | {"rope_theta": 10_000.0, "tie_word_embeddings": tied})
    model = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        wanted = model(torch.tensor(IDS)).logits.log_softmax(-1).numpy()
    cfg = config.from_hf(tmp_path)
    if not tied:
        with pytest.raises(ValueError, match="without its lm_head"):
            _ = weights.load(tmp_path, cfg, jnp.float32).predictor
    llama = weights.load(tmp_path, replace(cfg, writes=True), jnp.float32)
    hidden = llama.hidden(llama.embed(IDS), jnp.full(B, T)).reshape(B * T, -1)
    asked = np.random.default_rng(5).integers(0, 50, B * T)
    asked[:9] = wanted.reshape(B * T, -1)[:9].argmax(axis=1)
    found, first = losses.token_log_probs(hidden, llama.predictor, jnp.asarray(asked))
    flat = wanted.reshape(B * T, -1)
    np.testing.assert_allclose(found, flat[np.arange(B * T), asked], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(first, asked == flat.argmax(axis=1))


def record() -> None:
    golden = {}
    for case, changes in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), BASE | changes)
            golden[f"{case}/hidden"], golden[f"{case}/grad"] = ask_torch(Path(folder))
    np.savez_compressed(GOLDEN, **golden)


if __name__ == "__main__":
    record()
