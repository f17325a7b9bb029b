"""Data parallelism: one per-device function, one wrapper.

Every batch array has a leading device axis (the convention of `pmap`); state and frozen trees are replicated.
The wrapped function sees its own device's slice and talks to the others through the axis name `AXIS`.
The devices may belong to several processes: each of them brings the batch rows of its own devices.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from llmsrec_jax import processes

AXIS = "data"


def make_mesh(devices: int = 0) -> Mesh:
    """Mesh over the first `devices` devices (0 = all).

    Raises:
      ValueError: more devices asked for than there are, or only some of those of several processes.
    """
    available = jax.devices()
    if devices and processes.several():
        raise ValueError(f"mesh.devices={devices}: several processes use all of their devices")
    if devices > len(available):
        raise ValueError(
            f"mesh.devices={devices}, but there are {len(available)} devices ({available[0].platform})"
        )
    chosen = available[: devices or len(available)]
    return Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def keep_compiled() -> None:
    """Compiled programs serve later runs too; JAX_COMPILATION_CACHE_DIR says where, if set."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(cache / "llmsrec_jax"))


def keep_precise(dtype: Any) -> None:
    """Where float32 is asked for, products are in float32: accelerators would round their factors."""
    if dtype == jnp.float32:
        jax.config.update("jax_default_matmul_precision", "highest")


def own_devices(mesh: Mesh) -> list[int]:
    """Places of this process's devices in the mesh."""
    me = jax.process_index()
    return [place for place, device in enumerate(mesh.devices.flat) if device.process_index == me]


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A copy on every device; every process has the whole tree."""
    sharding = NamedSharding(mesh, P())
    if not processes.several():
        return jax.device_put(tree, sharding)

    def spread(leaf: Any) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(spread(jax.random.key_data(leaf)))
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(spread, tree)


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Host arrays [own devices, ...] to their devices."""
    sharding = NamedSharding(mesh, P(AXIS))
    if not processes.several():
        return jax.device_put(batch, sharding)
    put = lambda rows: jax.make_array_from_process_local_data(sharding, rows)
    return jax.tree.map(put, batch)


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
    """`encode(frozen, params, batch) -> rows [B, R]` over all devices -> [devices, B, R], the same in every process."""

    def per_device(frozen, params, batch):
        rows = encode(frozen, params, jax.tree.map(lambda x: x[0], batch))
        return jax.lax.all_gather(rows, AXIS)

    mapped = jax.shard_map(
        per_device, mesh=mesh, in_specs=(P(), P(), P(AXIS)), out_specs=P(), check_vma=False
    )
    return jax.jit(mapped)
