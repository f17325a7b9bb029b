"""The trainable A and B of LoRA, of all layers, and how they are put to a backbone: beside its weights, or into them."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from llmsrec_jax import config
from llmsrec_jax.llama.config import LlamaConfig
from llmsrec_jax.llama.lora import TARGETS, Lora, delta
from llmsrec_jax.llama.model import Added, Llama, shapes
from llmsrec_jax.llama.quant import Quantised
from llmsrec_jax.llama.weights import INPUTS


class Adapters(nnx.Module):
    """Initialised as peft does: A uniform in +-1/sqrt(inputs) (Kaiming's with a = sqrt 5), B zero."""

    def __init__(self, cfg: config.Lora, llama: LlamaConfig, rngs: nnx.Rngs):
        """Raises ValueError: a rank below 1 or no targets."""
        if cfg.rank < 1 or not cfg.targets:
            raise ValueError(
                f"LoRA of rank {cfg.rank} on {len(cfg.targets)} targets: nothing to train"
            )
        self.scale, self.dropout = cfg.alpha / cfg.rank, cfg.dropout
        self.a, self.b = nnx.Dict(), nnx.Dict()
        for name in sorted(TARGETS[target] for target in cfg.targets):
            inputs, outputs = widths(llama, name)
            a, b = (llama.layers, *inputs, cfg.rank), (llama.layers, cfg.rank, *outputs)
            bound = math.prod(inputs) ** -0.5
            self.a[name] = nnx.Param(
                jax.random.uniform(rngs.params(), a, jnp.float32, -bound, bound)
            )
            self.b[name] = nnx.Param(jnp.zeros(b, jnp.float32))

    def added(self, key: Array | None = None) -> dict[str, Lora]:
        """For `Llama.prefill` and `Llama.extend`; with a key some of every input is dropped, other ones in every layer."""
        found = {}
        for number, name in enumerate(self.a):
            a, b = self.a[name][...], self.b[name][...]
            keys = None
            if key is not None and self.dropout:
                keys = jax.random.split(jax.random.fold_in(key, number), len(a))
            found[name] = Lora(None, a, b, keys, self.scale, self.dropout)
        return found


def widths(cfg: LlamaConfig, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Input and output axes of a layer's weight."""
    _, *axes = shapes(cfg)[name]
    return tuple(axes[: INPUTS[name]]), tuple(axes[INPUTS[name] :])


def merged(llama: Llama, added: Added) -> Llama:
    """A backbone whose own weights do what `llama` does with `added`, at no cost per token.

    Raises:
      ValueError: weights in int8, in which there is no room for it.
    """
    return _moved(llama, added, 1)


def unmerged(llama: Llama, added: Added) -> Llama:
    """What `merged` was given, up to rounding. Raises as `merged`."""
    return _moved(llama, added, -1)


def _moved(llama: Llama, added: Added, sign: int) -> Llama:
    weights: dict[str, Any] = {name: leaf[...] for name, leaf in llama.layers.items()}
    for name, one in added.items():
        if isinstance(weights[name], Quantised):
            raise ValueError(
                "LoRA cannot be merged into int8 weights: load them with llm.quant=none"
            )
        base = weights[name]
        weights[name] = (base.astype(jnp.float32) + sign * delta(one)).astype(base.dtype)
    weights |= {"table": llama.table[...], "norm": llama.norm[...]}
    return Llama(llama.cfg, weights, llama.sharding)
