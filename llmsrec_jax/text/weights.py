"""Weights of a text encoder from Hugging Face safetensors, by a name table per family."""

from contextlib import ExitStack
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from llmsrec_jax import hf_folder
from llmsrec_jax.text.config import FAMILIES, EncoderConfig
from llmsrec_jax.text.model import OUTSIDE, Encoder, shapes

_EMBED = {
    "word": "word_embeddings.weight",
    "position": "position_embeddings.weight",
    "type": "token_type_embeddings.weight",
    "embed_scale": "LayerNorm.weight",
    "embed_bias": "LayerNorm.bias",
}
# our array -> tensors of one layer, side by side; matrices are [out, in] there and [in, out] here
_BERT = {
    "qkv": [f"attention.self.{part}.weight" for part in ("query", "key", "value")],
    "qkv_bias": [f"attention.self.{part}.bias" for part in ("query", "key", "value")],
    "out": ["attention.output.dense.weight"],
    "out_bias": ["attention.output.dense.bias"],
    "attn_scale": ["attention.output.LayerNorm.weight"],
    "attn_bias": ["attention.output.LayerNorm.bias"],
    "up": ["intermediate.dense.weight"],
    "up_bias": ["intermediate.dense.bias"],
    "down": ["output.dense.weight"],
    "down_bias": ["output.dense.bias"],
    "ff_scale": ["output.LayerNorm.weight"],
    "ff_bias": ["output.LayerNorm.bias"],
}
_DISTILBERT = {
    "qkv": [f"attention.{part}_lin.weight" for part in "qkv"],
    "qkv_bias": [f"attention.{part}_lin.bias" for part in "qkv"],
    "out": ["attention.out_lin.weight"],
    "out_bias": ["attention.out_lin.bias"],
    "attn_scale": ["sa_layer_norm.weight"],
    "attn_bias": ["sa_layer_norm.bias"],
    "up": ["ffn.lin1.weight"],
    "up_bias": ["ffn.lin1.bias"],
    "down": ["ffn.lin2.weight"],
    "down_bias": ["ffn.lin2.bias"],
    "ff_scale": ["output_layer_norm.weight"],
    "ff_bias": ["output_layer_norm.bias"],
}
LAYERS = {  # family -> where its layers are, and what is in one
    "bert": ("encoder.layer", _BERT),
    "distilbert": ("transformer.layer", _DISTILBERT),
    "roberta": ("encoder.layer", _BERT),
    "xlm-roberta": ("encoder.layer", _BERT),
}
# what stands on top of the encoder, and buffers; behind a prefix everything without it is some head
_IGNORED = r"(pooler|cls|lm_head|vocab_\w+|classifier|pre_classifier|qa_outputs)\..*|.*embeddings\.position_ids"


def load(folder: str | Path, cfg: EncoderConfig) -> Encoder:
    """Reads one or many safetensors, in float32.

    Raises ValueError naming tensor and file if a tensor is missing, unexpected or mis-shaped, or a file is damaged.
    """
    folder = Path(folder)
    with ExitStack() as stack:
        readers = hf_folder.open_tensors(folder, stack)
        names = {name for reader in readers.values() for name in reader.keys()}
        prefix = FAMILIES[cfg.family].prefix
        if not any(name.startswith(prefix + "embeddings.") for name in names):
            prefix = ""
        ignored = _IGNORED + (rf"|{prefix}pooler\..*|(?!{prefix}).*" if prefix else "")
        tensors = {
            (ours, layer): [_spelled(prefix + name, names) for name in theirs]
            for ours, layer, theirs in _table(cfg)
        }
        want = {
            name: _shape(cfg, ours) for (ours, _), together in tensors.items() for name in together
        }
        model = f"{cfg.layers} layers of {cfg.family}"
        files = hf_folder.match(readers, want, ignored, model, folder)
        read = lambda name: np.asarray(readers[files[name]].get_tensor(name), np.float32)
        arrays = {
            place: np.concatenate([read(name) for name in together])
            for place, together in tensors.items()
        }
    weights = {name: arrays[name, None] for name in OUTSIDE}
    weights["position"] = weights["position"][cfg.first :]
    if cfg.types:
        weights["position"] = weights["position"] + arrays["type", None][0]
    for name in LAYERS[cfg.family][1]:
        weights[name] = np.stack([arrays[name, i].T for i in range(cfg.layers)])
    return Encoder(cfg, {name: jnp.asarray(array) for name, array in weights.items()})


def _table(cfg: EncoderConfig) -> list[tuple[str, int | None, list[str]]]:
    """(our array, layer or None, tensors of the checkpoint) of everything that is read."""
    rows: list[tuple[str, int | None, list[str]]] = [
        (name, None, [f"embeddings.{tensor}"])
        for name, tensor in _EMBED.items()
        if name != "type" or cfg.types
    ]
    where, inside = LAYERS[cfg.family]
    for i in range(cfg.layers):
        rows += [
            (name, i, [f"{where}.{i}.{part}" for part in parts]) for name, parts in inside.items()
        ]
    return rows


def _shape(cfg: EncoderConfig, ours: str) -> tuple[int, ...]:
    """Of one of its tensors in the checkpoint."""
    tables = {"position": cfg.positions, "type": cfg.types}
    if ours in tables:
        return tables[ours], cfg.d
    if ours in OUTSIDE:
        return shapes(cfg)[ours]
    inside = shapes(cfg)[ours][1:]
    parts = 3 if ours in ("qkv", "qkv_bias") else 1
    return (inside[-1] // parts, *inside[:-1])


def _spelled(name: str, names: set[str]) -> str:
    """Norms of the oldest checkpoints have gamma and beta."""
    old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    )
    return old if old in names else name
