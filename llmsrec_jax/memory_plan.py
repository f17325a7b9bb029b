"""How a run uses the memory there is: in how many parts a step goes, where items' prefixes are kept, and advice if nothing fits.

As few parts as fit, since each pass more than one costs a forward pass. Prefixes on the devices rather than on the host rather
than computed again and again, where training reads them more often than the once that it takes to compute them; a store is
made only if even a step of the longest prompts fits beside it.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from llmsrec_jax import config, loaders, memory, parallel
from llmsrec_jax.memory import MARGIN, Job, Needs, fits, shown

HOST_SHARE = 0.5  # of the machine's free memory that a store may take: files are cached in the rest

Change = tuple[str, Any]  # name of a setting, and a value to try
CHANGES: tuple[Change, ...] = (  # those without other results first
    *(("train.parts", 0), ("llm.item_store", "host"), ("llm.item_store", "recompute")),
    *(("llm.remat", "inputs"), ("evaluate.batch", 16), ("evaluate.batch", 4)),
    *(("mesh.fsdp", 2), ("mesh.fsdp", 4), ("mesh.fsdp", 8), ("llm.quant", "w8")),
)
OTHER_RESULTS = {"llm.quant", "train.batch"}
AT_ONCE, LINES = 3, 6  # most settings that are changed together, and ways out that are shown


class Plan(NamedTuple):
    """What was chosen, and what it needs."""

    parts: int
    item_store: str
    needs: Needs
    worst: int  # bytes in all, with a step of only the longest prompts
    limit: int | None  # bytes of each device; None = unknown
    advice: tuple[str, ...] = ()  # where it does not fit: what would

    @property
    def fits(self) -> bool:
        return fits(self.needs.total, self.limit)

    def apply(self, cfg: config.Config) -> config.Config:
        return config.apply(cfg, {"train.parts": self.parts, "llm.item_store": self.item_store})

    def __str__(self) -> str:
        return f"{self.needs.listed(self.limit)}; train.parts={self.parts}, llm.item_store={self.item_store}"

    def report(self) -> str:
        """Of what fits."""
        if fits(self.worst, self.limit):
            return str(self)
        return (
            f"{self}\na step of only the longest prompts, which hardly ever comes, would need {shown(self.worst)}: "
            "more train.parts need less"
        )

    def require(self) -> None:
        """Raises a ValueError that says what to change, where it does not fit."""
        if not self.fits:
            raise ValueError("\n".join([f"training does not fit: {self}", *self.advice]))


def choose(job: Job, mesh: parallel.DeviceMesh) -> Plan:
    """Parts and store as the configuration says, and chosen where it leaves them to this."""
    room = memory.available(mesh, job.cfg.mesh.memory_gib), memory.host_memory()
    found = _chosen(job, *room)
    if found.fits:
        return found
    return found._replace(advice=tuple(itertools.islice(_advice(job, *room), LINES)))


def _chosen(job: Job, limit: int | None, host: int | None) -> Plan:
    wanted = job.cfg.train.parts if job.steps else 1
    stores = _stores(job, limit, host)
    plans: list[Plan] = []
    for parts in [loaders.parts_of(job.rows, wanted)] if wanted else divisors(job.rows):
        plans = [
            Plan(parts, store, job.needs(parts, store), job.worst(parts, store), limit)
            for store in stores
        ]
        fitting = [one for one in plans if one.fits]
        if fitting:
            return next((one for one in fitting if fits(one.worst, limit)), fitting[-1])
    return min(plans, key=lambda one: one.needs.total)


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _stores(job: Job, limit: int | None, host: int | None) -> list[str]:
    """Where items' prefixes may come from, the fastest first."""
    llm, mesh = job.cfg.llm, job.cfg.mesh
    if llm.item_store != "auto":
        return [llm.item_store]
    if job.cfg.lora.trains:  # and changes all keys and values with every step
        return ["recompute"]
    roomy = host is not None and job.prefixes <= HOST_SHARE * host
    kept = ["hbm", "host"] if roomy else ["hbm"]
    if llm.item_store_dtype != "auto":  # rounded: those that are computed again are other ones
        return kept
    pays = job.reads > 1 and mesh.tensor == 1 and limit is not None
    return [*kept, "recompute"] if pays else ["recompute"]


def _advice(job: Job, limit: int | None, host: int | None) -> Iterator[str]:
    """Settings with which it fits, each tried; none that changes more settings than another one, or the same ones further."""
    enough: list[set[str]] = []
    least = job.needs(job.rows, "recompute").total
    smaller = [("train.batch", job.batch // n) for n in (2, 4, 8) if job.batch % n == 0]
    known = dict(_values(job.cfg))
    tries = [one for one in (*CHANGES, *smaller) if known[one[0]] != one[1]]
    for changes in itertools.chain.from_iterable(
        itertools.combinations(tries, n) for n in range(1, AT_ONCE + 1)
    ):
        names = {name for name, _ in changes}
        if len(names) < len(changes) or any(one <= names for one in enough):
            continue
        try:
            other = job.changed(dict(changes))
            tried = _chosen(other, limit, host)
        except ValueError:  # not legal together
            continue
        least = min(least, tried.needs.total)
        if tried.fits:
            enough.append(names)
            yield _offer(changes, tried, other.devices)
    if not enough:
        yield (
            f"nothing that was tried fits: it takes devices with {shown(MARGIN * least)} free, or a smaller backbone"
        )


def _values(cfg: config.Config) -> Iterator[Change]:
    return ((name, value) for name, value, _ in config.flatten(cfg))


def _offer(changes: Sequence[Change], tried: Plan, devices: int) -> str:
    values = dict(changes)
    if "train.parts" in values:
        values["train.parts"] = tried.parts
    flags = " ".join(f"--config.{name}={value}" for name, value in values.items())
    where = f" on {devices} devices" if "mesh.fsdp" in values else ""
    other = ", with other results" if OTHER_RESULTS & values.keys() else ""
    return f"  {flags}{where} needs {shown(tried.needs.total)}{other}"
