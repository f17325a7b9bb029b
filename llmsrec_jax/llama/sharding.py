"""A backbone that no single device can hold: how its weights are shared out, and what the devices then say to each other.

Devices along `fsdp` compute on different rows; each keeps a part of every weight and lends it to the others just before a layer
runs. Devices along `tensor` compute on the same rows, each with its own heads and its own part of the feed-forward; they add up
what comes out of the two (Shoeybi et al. 2019, arXiv:1909.08053). Without these axes nothing here does anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from llmsrec_jax.llama.config import LlamaConfig
from llmsrec_jax.llama.lora import Lora
from llmsrec_jax.llama.quant import Quantised

FSDP, TENSOR = "fsdp", "tensor"

# Name of a weight -> which of its axes is cut over which axis of the devices (see `model.shapes`).
RULES: dict[str, P] = {
    "table": P(None, (FSDP, TENSOR)),  # by columns: each device finds its part of every token's row
    "lm_head": P(None, (FSDP, TENSOR)),
    "attn_norm": P(),
    "q": P(None, FSDP, TENSOR),
    "k": P(None, FSDP, TENSOR),
    "v": P(None, FSDP, TENSOR),
    "o": P(None, TENSOR, None, FSDP),
    "mlp_norm": P(),
    "gate": P(None, FSDP, TENSOR),
    "up": P(None, FSDP, TENSOR),
    "down": P(None, TENSOR, FSDP),
    "norm": P(),
}


@dataclass(frozen=True)
class Sharding:
    """Of weights over the devices of a mesh; None = all on the default device. Methods on layers are called per device."""

    mesh: Mesh | None = None

    def check(self, cfg: LlamaConfig, mode: str = "none") -> None:
        """Raises ValueError unless the two axes divide what they cut, and cut nothing that is rounded as a whole."""
        fsdp, tensor = self._devices(FSDP), self._devices(TENSOR)
        if mode == "w8a8" and tensor > 1:
            raise ValueError(
                f"mesh.tensor={tensor}: llm.quant=w8a8 rounds a token by the largest of all its inputs, of which each "
                "device has a part; use w8, or mesh.fsdp"
            )
        wanted = (
            ("heads", cfg.heads, f"mesh.tensor={tensor}", tensor),
            ("key and value heads", cfg.kv_heads, f"mesh.tensor={tensor}", tensor),
            ("feed-forward width", cfg.ff, f"mesh.tensor={tensor}", tensor),
            ("width", cfg.d, f"mesh.fsdp={fsdp} x mesh.tensor={tensor}", fsdp * tensor),
        )
        for what, size, setting, devices in wanted:
            if size % devices:
                raise ValueError(f"{setting}: must divide the {what} of the backbone, {size}")

    def _devices(self, axis: str) -> int:
        return 1 if self.mesh is None else self.mesh.shape.get(axis, 1)

    def spec(self, name: str) -> P:
        """How the weight `name` is cut.

        Raises:
          ValueError: there is no rule for it.
        """
        if name not in RULES:
            raise ValueError(
                f"no rule says how to share out the weight '{name}': add one to llama.sharding.RULES"
            )
        parts = [axes if isinstance(axes, tuple) else (axes,) for axes in RULES[name]]
        return P(*(tuple(a for a in axes if a and self._devices(a) > 1) or None for axes in parts))

    def specs(self, name: str, leaf: Any) -> Any:
        """`spec` of every array of the weight `name`; int8 values have their scales beside them. Raises as `spec`."""
        spec, is_one = self.spec(name), lambda part: isinstance(part, Quantised)

        def of(part: Any) -> Any:
            if not is_one(part):
                return spec
            inputs = part.values.ndim - part.scale.ndim
            return replace(part, values=spec, scale=P(*tuple(spec)[:1], *tuple(spec)[1 + inputs :]))

        return jax.tree.map(of, leaf, is_leaf=is_one)

    def place(self, name: str, weight: Any) -> Any:
        """The weight `name` on the devices; each is sent nothing but its part. Raises as `spec`."""
        return jax.tree.map(self._put, weight, self.specs(name, weight))

    def _put(self, array: np.ndarray, spec: P) -> jax.Array:
        if self.mesh is None:
            return jax.device_put(array)
        sharding = NamedSharding(self.mesh, spec)
        if self.mesh.size == 1:
            return jax.device_put(array, sharding)  # taken over, not copied, where that can be
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    def whole(self, name: str, part: Any) -> Any:
        """A layer's weight from the parts along `fsdp`; those along `tensor` stay apart."""
        if self._devices(FSDP) == 1:
            return part

        def gather(array: Array, spec: P) -> Array:
            axes = tuple(spec)[1:]  # without the axis of layers
            where = [i for i, names in enumerate(axes) if names and FSDP in names]
            return jax.lax.all_gather(array, FSDP, axis=where[0], tiled=True) if where else array

        return jax.tree.map(gather, part, self.specs(name, part))

    def own(self, name: str, row: Lora) -> Lora:
        """Of LoRA of a layer's weight `name`, all of which is on every device: what goes with our part along `tensor`.

        Raises as `spec`.
        """
        if self._devices(TENSOR) == 1:
            return row
        spec, inputs = self.spec(name), row.a.ndim - 1
        axes = [*tuple(spec)[1:], *[None] * (inputs + row.b.ndim - len(spec))]
        a, b = (_enter(x) for x in (row.a, row.b))  # every device has its share of their gradients
        own = self._own_rows
        row = replace(row, a=own(a, axes[:inputs]), b=own(b, [None, *axes[inputs:]]))
        if not _cut(axes[:inputs]):
            return row
        return replace(row, part=jax.lax.axis_index(TENSOR), parts=self._devices(TENSOR))

    def _own_rows(self, x: Array, axes: Sequence[Any]) -> Array:
        for axis in _cut(axes):
            size = x.shape[axis] // self._devices(TENSOR)
            start = jax.lax.axis_index(TENSOR) * size
            x = jax.lax.dynamic_slice_in_dim(x, start, size, axis)
        return x

    def lookup(self, table: Float[Array, "V d"], ids: Int[Array, "*T"]) -> Float[Array, "*T D"]:
        """Rows of a table of which every device has some columns. Not differentiable along `fsdp` or `tensor`."""
        if self._devices(FSDP) > 1:  # everyone's tokens in our columns
            ids = jax.lax.all_gather(ids, FSDP)
        x = table[ids]
        if self._devices(TENSOR) > 1:
            x = jax.lax.all_gather(x, TENSOR, axis=x.ndim - 1, tiled=True)
        if self._devices(FSDP) > 1:  # our tokens in everyone's columns
            x = jax.lax.all_to_all(x, FSDP, 0, x.ndim - 1, tiled=True)[0]
        return x

    def columns(self, table: Float[Array, "V d"]) -> Float[Array, "V D"]:
        """All columns of a table of which every device has some."""
        axes = tuple(axis for axis in (FSDP, TENSOR) if self._devices(axis) > 1)
        return jax.lax.all_gather(table, axes, axis=1, tiled=True) if axes else table

    def enter(self, x: Array) -> Array:
        """Before the products with a device's own heads or its part of the feed-forward: their gradients are added up."""
        return _enter(x) if self._devices(TENSOR) > 1 else x

    def leave(self, x: Array) -> Array:
        """After them: the devices' parts are added up."""
        return _leave(x) if self._devices(TENSOR) > 1 else x


WHOLE = Sharding()


def _cut(axes: Sequence[Any]) -> list[int]:
    """Numbers of those that `tensor` cuts."""
    return [i for i, names in enumerate(axes) if names and TENSOR in names]


# Each is the other's transpose. Left to itself, the transpose of a sum over devices would be one more sum.
@jax.custom_vjp
def _enter(x: Array) -> Array:
    return x


@jax.custom_vjp
def _leave(x: Array) -> Array:
    return jax.lax.psum(x, TENSOR)


_total = partial(jax.lax.psum, axis_name=TENSOR)
_enter.defvjp(lambda x: (x, None), lambda _, grad: (_total(grad),))
_leave.defvjp(lambda x: (_total(x), None), lambda _, grad: (grad,))
