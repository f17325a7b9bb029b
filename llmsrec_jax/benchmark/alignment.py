"""A-LLMRec's stage 1, an epoch of it: the paper counts the training of both stages (Table 9)."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from llmsrec_jax import loaders, parallel, train
from llmsrec_jax.benchmark import stages, work
from llmsrec_jax.cf_training import AlignmentJob
from llmsrec_jax.data.samples import Samples
from llmsrec_jax.models import allmrec
from llmsrec_jax.text import config as text


def alignment(bench: stages.Bench) -> dict[str, Any]:
    """Of the made data, with random vectors; those of titles are made once, by a text encoder, and take no time here.

    Raises:
      ValueError: the text encoder, whose width counts, is not here.
    """
    system, cfg, mesh = bench.system, bench.system.cfg, bench.system.mesh
    widths = cfg.teacher.d, text.from_hf(text.locate(cfg.alignment.text)).d
    dataset = system.made.dataset
    samples = Samples.of(dataset, dataset.eligible("train"), "last")
    tables = (jnp.asarray(system.normal(dataset.catalog.size, width)) for width in widths)
    frozen = parallel.replicate(allmrec.Frozen(*tables), mesh)
    batches = loaders.AlignBatches(
        *(samples, system.normal(len(samples)), cfg.alignment.batch, cfg.seed, mesh.parts)
    )
    params = nnx.state(allmrec.Alignment(*widths, cfg.alignment.middle, nnx.Rngs(params=cfg.seed)))
    state = train.init_state(params, cfg.alignment.lr, cfg.alignment.b2)
    job = AlignmentJob(cfg, mesh, dataset.catalog.size, widths[1], len(samples))
    stepper = stages.Stepper(job.step, frozen, parallel.replicate(state, mesh), system.put)
    epoch = stages.Epoch.of(batches, batches.order.steps_per_epoch, stages.TEACHER_BATCHES)
    total = epoch.total(lambda step: work.aligned(cfg, widths[1], batches.order.batch))
    return stages.epoch_stage(bench, stepper, epoch, total)
