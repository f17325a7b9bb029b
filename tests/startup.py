"""Time from the start of the process to the first finished step of every training stage; the arguments are those of a run.

python -m tests.startup --config=configs/shop.py:smoke --workdir=runs/startup
"""

import os
import time
from dataclasses import replace
from pathlib import Path

import jax
from absl import app

from llmsrec_jax import main, train


def since_start() -> float:
    """Seconds of wall time since the kernel started this process (Linux)."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def noted(job: train.Job) -> train.Job:
    """The same job, which says when its first step is done."""
    done = False

    def step(*args):
        nonlocal done
        result = job.step(*args)
        if not done:
            jax.block_until_ready(result)
            done = True
            spent = f"{since_start():.1f} s of wall time, {time.process_time():.1f} CPU seconds"
            print(f"{job.stage}: first step after {spent}", flush=True)
        return result

    return replace(job, step=step)


if __name__ == "__main__":
    fit = train.fit
    train.fit = lambda job, *rest: fit(noted(job), *rest)
    app.run(main.main, flags_parser=main.parse)
