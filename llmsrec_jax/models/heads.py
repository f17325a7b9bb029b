"""The small MLPs that train: Linear - LayerNorm - activation - Linear (S1, D1)."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

ACTIVATIONS = {
    "leaky_relu": partial(jax.nn.leaky_relu, negative_slope=0.01),
    "gelu": partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
}


def torch_uniform(fan_in: int):
    """Uniform in +-1/sqrt(fan_in): PyTorch's default for the weights and the bias of a linear layer."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32, out_sharding=None: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


def linear(fan_in: int, fan_out: int, rngs: nnx.Rngs) -> nnx.Linear:
    """Xavier-normal weights, PyTorch's default bias: the authors' initialisation."""
    return nnx.Linear(
        fan_in,
        fan_out,
        kernel_init=nnx.initializers.glorot_normal(),
        bias_init=torch_uniform(fan_in),
        precision="highest",
        rngs=rngs,
    )


def torch_linear(fan_in: int, fan_out: int, rngs: nnx.Rngs) -> nnx.Linear:
    """PyTorch's default initialisation."""
    init = torch_uniform(fan_in)
    return nnx.Linear(
        fan_in, fan_out, kernel_init=init, bias_init=init, precision="highest", rngs=rngs
    )


class Head(nnx.Module):
    """f: [.., in] -> [.., out] in float32, whatever the backbone's dtype."""

    def __init__(
        self, fan_in: int, hidden: int, fan_out: int, act: str, norm: bool, rngs: nnx.Rngs
    ):
        self.first = linear(fan_in, hidden, rngs)
        self.norm = (
            nnx.LayerNorm(hidden, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
            if norm
            else None
        )
        self.last = linear(hidden, fan_out, rngs)
        self.act = act

    def __call__(self, x: Float[Array, "*B X"]) -> Float[Array, "*B Y"]:
        x = self.first(x.astype(jnp.float32))
        x = x if self.norm is None else self.norm(x)
        return self.last(ACTIVATIONS[self.act](x))
