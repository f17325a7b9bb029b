"""Many devices, one program: one per-device function, and two doors that put it on all devices.

Every batch array has a leading axis of parts, one per group of devices that computes on the same rows. `mesh.mode` is the door:
`shard_map` (default) or `pmap`, whose convention that is. State is replicated; the backbone is shared out along the axes
`fsdp` and `tensor` (llama/sharding.py). A per-device function sees its own rows and talks to the others through
`DeviceMesh.axis`. The devices may belong to several processes: each brings the rows of its own devices.
"""

import ctypes
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from llmsrec_jax import config, processes
from llmsrec_jax.llama.model import Frozen
from llmsrec_jax.llama.sharding import FSDP, TENSOR, Sharding

DATA = "data"
# of glibc's mallopt: when to return memory | how many mapped blocks | how many arenas, as only the first one grows at will
MALLOC = {-1: 2**31 - 1, -4: 0, -8: 1}


@dataclass(frozen=True)
class DeviceMesh:
    """All devices in use, by axis: data, then fsdp and tensor where they are more than one device long."""

    mesh: Mesh
    mode: str = "shard_map"

    @property
    def axis(self) -> tuple[str, ...]:
        """The axes along which devices have different rows."""
        return tuple(name for name in self.mesh.axis_names if name != TENSOR)

    @property
    def parts(self) -> int:
        """Into how many parts the rows of a batch are cut."""
        return math.prod(self.mesh.shape[name] for name in self.axis)

    @property
    def mine(self) -> list[int]:
        """The parts on devices of this process."""
        me, by_part = jax.process_index(), self.mesh.devices.reshape(self.parts, -1)
        return [n for n, part in enumerate(by_part) if any(d.process_index == me for d in part)]

    @property
    def weights(self) -> Sharding:
        return Sharding(self.mesh)

    def sharding(self, *axes: Any) -> NamedSharding:
        return NamedSharding(self.mesh, P(*axes))


def make_mesh(cfg: config.Mesh) -> DeviceMesh:
    """The mesh of the first `cfg.devices` devices (0 = all).

    Raises:
      ValueError: more devices asked for than there are, or only some of those of several processes; axes that do not
        divide them; axes that `pmap` does not have.
    """
    available = jax.devices()
    if cfg.devices and processes.several():
        raise ValueError(f"mesh.devices={cfg.devices}: several processes use all of their devices")
    if cfg.devices > len(available):
        raise ValueError(
            f"mesh.devices={cfg.devices}, but there are {len(available)} devices ({available[0].platform})"
        )
    chosen, shared = available[: cfg.devices or len(available)], cfg.fsdp * cfg.tensor
    if cfg.mode == "pmap" and shared > 1:
        raise ValueError(
            f"mesh.mode=pmap has one axis of devices and keeps the whole backbone on each of them: "
            f"use shard_map for mesh.fsdp={cfg.fsdp}, mesh.tensor={cfg.tensor}"
        )
    if len(chosen) % shared:
        raise ValueError(
            f"mesh.fsdp={cfg.fsdp} x mesh.tensor={cfg.tensor} must divide the number of devices, {len(chosen)}"
        )
    sizes = {DATA: len(chosen) // shared, FSDP: cfg.fsdp, TENSOR: cfg.tensor}
    sizes = {name: size for name, size in sizes.items() if name == DATA or size > 1}
    grid = np.array(chosen).reshape(*sizes.values())
    return DeviceMesh(Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes)), cfg.mode)


def keep_compiled() -> None:
    """Compiled programs serve later runs too; JAX_COMPILATION_CACHE_DIR says where, if set.

    Small ones as well: a run has dozens of them, and by default JAX forgets what took less than a second.
    """
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(cache / "llmsrec_jax"))


def keep_precise() -> None:
    """Products of float32 are in float32, for the teacher and the heads whatever the backbone's dtype: accelerators would
    round their factors."""
    jax.config.update("jax_default_matmul_precision", "highest")


def keep_memory() -> None:
    """What a step gives back stays with the process for the next one, up to 2 GiB at the end of the heap, where glibc
    hands out memory.

    By default every large buffer is mapped anew, and cleared page by page: a tenth and more of a training step on processors.
    To be called before JAX starts its threads, which otherwise have arenas of their own.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: None)
        for option, value in MALLOC.items():
            mallopt(option, value)


def replicate(tree: Any, mesh: DeviceMesh) -> Any:
    """A copy on every device; every process has the whole tree."""
    sharding = mesh.sharding()
    if not processes.several():
        return jax.device_put(tree, sharding)

    def spread(leaf: Any) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(spread(jax.random.key_data(leaf)))
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(spread, tree)


def put_batch(batch: Any, mesh: DeviceMesh) -> Any:
    """Host arrays [own parts, ...] to their devices."""
    sharding = mesh.sharding(mesh.axis)
    if not processes.several():
        return jax.device_put(batch, sharding)

    def put(rows: np.ndarray) -> jax.Array:
        shape = (mesh.parts, *rows.shape[1:])
        return jax.make_array_from_process_local_data(sharding, rows, shape)

    return jax.tree.map(put, batch)


def replicated(shapes: Any, mesh: DeviceMesh) -> Any:
    """What `replicate` makes of arrays of these shapes, as shapes."""
    return _laid(shapes, mesh.sharding(), ())


def parted(shapes: Any, mesh: DeviceMesh) -> Any:
    """What `put_batch` makes of arrays whose parts have these shapes, as shapes."""
    return _laid(shapes, mesh.sharding(mesh.axis), (mesh.parts,))


def _laid(shapes: Any, sharding: NamedSharding, before: tuple[int, ...]) -> Any:
    lay = lambda x: jax.ShapeDtypeStruct((*before, *x.shape), x.dtype, sharding=sharding)
    return jax.tree.map(lay, shapes)


def temporary(wrapped: Any, *args: Any) -> int:
    """Bytes that a compiled function needs on each device beside its arguments, by XLA's account.

    args: shapes, of `replicated` or `parted`. Where it is called with such arrays, the program is the same, compiled once.
    """
    found = wrapped.lower(*args).compile().memory_analysis()
    beside = found.temp_size_in_bytes + found.output_size_in_bytes
    return beside - found.alias_size_in_bytes


def stack(shards: list[Any]) -> Any:
    """One tree per part -> one tree with a leading axis of parts."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *shards)


def train_wrapper(step: Callable, mesh: DeviceMesh) -> Callable:
    """`step(frozen, state, batch) -> (state, metrics)` over all devices, compiled once per batch shape; donates state."""
    return _on_parts(step, mesh, donate=(1,))


def encode_wrapper(encode: Callable, mesh: DeviceMesh) -> Callable:
    """`encode(frozen, params, batch) -> rows [B, R]` over all devices -> [parts, B, R], the same in every process."""

    def gathered(frozen: Any, params: Any, batch: Any) -> jax.Array:
        return jax.lax.all_gather(encode(frozen, params, batch), mesh.axis)

    return _on_parts(gathered, mesh, donate=())


def _on_parts(per_device: Callable, mesh: DeviceMesh, donate: tuple[int, ...]) -> Callable:
    """`per_device(frozen, state, batch)`, whose results are the same on every device, on all of them."""

    def on_part(frozen: Any, state: Any, batch: Any) -> Any:
        return per_device(frozen, state, jax.tree.map(lambda x: x[0], batch))

    mapped = _mapped(on_part, mesh, P(mesh.axis), donate)
    return _Pmapped(per_device, mesh, donate, mapped) if mesh.mode == "pmap" else mapped


def everywhere(function: Callable, mesh: DeviceMesh) -> Callable:
    """`function(frozen, *args)` on every device alike, each with its part of the backbone; compiled."""
    return _mapped(function, mesh, P())


def _mapped(
    function: Callable, mesh: DeviceMesh, last: P, donate: tuple[int, ...] = ()
) -> Callable:
    """`function(frozen, *args)` per device: args are on each of them, the last one lies as `last` says; compiled."""

    def program(frozen: Any, *args: Any) -> Any:
        specs = _specs(frozen, mesh.weights), *(P() for _ in args[:-1]), last
        return jax.shard_map(
            function, mesh=mesh.mesh, in_specs=specs, out_specs=P(), check_vma=False
        )(frozen, *args)

    return jax.jit(program, donate_argnums=donate)


def _specs(frozen: Any, weights: Sharding) -> Any:
    """How what is frozen lies on the devices: the backbone's weights by the rules for their names, all else on each."""
    is_weight = lambda leaf: isinstance(leaf, Frozen)

    def spec(path: tuple[Any, ...], leaf: Any) -> Any:
        return weights.specs(path[-1].key, leaf) if is_weight(leaf) else P()

    return jax.tree_util.tree_map_with_path(spec, frozen, is_leaf=is_weight)


class _Pmapped:
    """`jax.pmap` with the signature of the other door, counting its programs."""

    def __init__(
        self, per_device: Callable, mesh: DeviceMesh, donate: tuple[int, ...], mapped: Any
    ):
        """mapped: the same through the other door."""

        def traced(frozen: Any, state: Any, batch: Any) -> Any:
            self.programs += 1
            return per_device(frozen, state, batch)

        self.programs = 0
        self._call = jax.pmap(
            traced,
            axis_name=DATA,
            in_axes=(None, None, 0),
            out_axes=None,  # pyright: ignore[reportArgumentType]
            devices=list(mesh.mesh.devices.flat),
            donate_argnums=donate,
        )
        # ahead of time, as jit's; of several processes pmap knows no shapes, only arrays
        self.lower = (mapped if processes.several() else self._call).lower

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)


def programs(wrapped: Any) -> int:
    """How many shapes a wrapped function was compiled for in this process."""
    return wrapped.programs if isinstance(wrapped, _Pmapped) else wrapped._cache_size()
