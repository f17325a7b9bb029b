"""One configuration in one work folder: what every stage needs, and how a stage is made once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmsrec_jax import config, parallel, processes, train
from llmsrec_jax.checkpoint import Checkpoints, Stage
from llmsrec_jax.keys import Keys
from llmsrec_jax.writer import Writer


class Work:
    """Shared by the stages of a run."""

    def __init__(self, cfg: config.Config, workdir: Path, writer: Writer):
        self.cfg, self.workdir, self.writer = cfg, workdir, writer
        self.keys = Keys(cfg)
        self.mesh = parallel.make_mesh(cfg.mesh)
        self.devices, self.mine = self.mesh.parts, self.mesh.mine

    def stage(self, name: str, fields: tuple[str, ...], **more: Any) -> Stage:
        """The folder of an artefact that depends on the settings `fields` and on what `more` says of it."""
        return Stage(self.workdir, name, self.keys(fields) | more)

    def once(self, stage: Stage, make: Callable[[Stage], dict[str, Any]]) -> None:
        """Has the first process make the artefact and close the stage, unless it is finished; the others wait."""
        with processes.led(stage.name) as leads:
            if leads and not stage.finished:
                stage.finish(make(stage))
        if not stage.finished:
            raise ValueError(f"{stage.folder} is not seen by every process: share the work folder")

    def done(self, stage: Stage) -> bool:
        """Whether a stage in which all processes take part is finished."""
        return processes.agree(stage.finished)

    def fit(self, stage: Stage, job: train.Job, state: train.State) -> None:
        """Trains, closes the stage and says how it went, with the number of programs it had to compile."""
        state = parallel.replicate(state, self.mesh)
        with Checkpoints(stage.folder, stage.key) as checkpoints:
            progress = train.fit(job, state, checkpoints, self.writer)
        self.once(stage, lambda stage: train.summary(progress))
        early = ", stopped early" if progress.stopped else ""
        self.writer.say(
            f"{job.stage}: best {job.metric} ({job.ranking} ranking) {progress.best:.4f} at step "
            f"{progress.best_step} of {job.total_steps}{early}; {parallel.programs(job.step)} compiled programs"
        )

    def fitted(self, stage: Stage, like: train.State, keep: str = "best") -> Any:
        """Parameters of a finished stage, on the devices; keep: best | last."""
        with Checkpoints(stage.folder, stage.key) as checkpoints:
            state = checkpoints.best(like) if keep == "best" else checkpoints.latest(like)
        assert state is not None, "a finished stage has a checkpoint"
        return parallel.replicate(state[0].params, self.mesh)
