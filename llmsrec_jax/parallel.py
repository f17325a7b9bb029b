"""Data parallelism: one per-device function, one wrapper.

Every batch array has a leading device axis (the convention of `pmap`); state and frozen trees are replicated.
The wrapped function sees its own device's slice and talks to the others through the axis name `AXIS`.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "data"


def make_mesh(devices: int = 0) -> Mesh:
    """Mesh over the first `devices` devices (0 = all).

    Raises:
      ValueError: more devices asked for than there are.
    """
    available = jax.devices()
    if devices > len(available):
        raise ValueError(
            f"mesh.devices={devices}, but there are {len(available)} devices ({available[0].platform})"
        )
    chosen = available[: devices or len(available)]
    return Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A copy on every device."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Host arrays [devices, ...] to their devices."""
    return jax.device_put(batch, NamedSharding(mesh, P(AXIS)))


def stack(shards: list[Any]) -> Any:
    """One tree per device -> one tree with a leading device axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *shards)


def train_wrapper(step: Callable, mesh: Mesh) -> Callable:
    """`step(frozen, state, batch) -> (state, metrics)` over all devices, compiled once per batch shape; donates state."""

    def per_device(frozen, state, batch):
        return step(frozen, state, jax.tree.map(lambda x: x[0], batch))

    mapped = jax.shard_map(
        per_device, mesh=mesh, in_specs=(P(), P(), P(AXIS)), out_specs=P(), check_vma=False
    )
    return jax.jit(mapped, donate_argnums=1)


def programs(wrapped: Any) -> int:
    """How many shapes a wrapped function was compiled for in this process."""
    return wrapped._cache_size()


def encode_wrapper(encode: Callable, mesh: Mesh) -> Callable:
    """`encode(frozen, params, batch) -> rows [B, R]` over all devices -> [devices, B, R]."""

    def per_device(frozen, params, batch):
        return encode(frozen, params, jax.tree.map(lambda x: x[0], batch))[None]

    mapped = jax.shard_map(
        per_device, mesh=mesh, in_specs=(P(), P(), P(AXIS)), out_specs=P(AXIS), check_vma=False
    )
    return jax.jit(mapped)
