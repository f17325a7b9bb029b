"""The launch files cannot be run here, but they parse, and every setting and file they name exists."""

import math
import re
import runpy
import subprocess
from pathlib import Path

import pytest
import yaml

from llmsrec_jax import config, main, rules
from tests.conftest import REPO

LAUNCH = REPO / "launch"
SCRIPTS = ("local_multiprocess.sh", "slurm_gpu.sbatch", "tpu_pod.sh")
MANIFESTS = ("gke_jobset.yaml", "skypilot.yaml")
REQUIRED = {  # dotted path -> type, by the published schemas
    "gke_jobset.yaml": {
        "apiVersion": str,
        "kind": str,
        "metadata.name": str,
        "spec.failurePolicy.maxRestarts": int,
        "spec.replicatedJobs.0.name": str,
        "spec.replicatedJobs.0.replicas": int,
        "spec.replicatedJobs.0.template.spec.parallelism": int,
        "spec.replicatedJobs.0.template.spec.completions": int,
        "spec.replicatedJobs.0.template.spec.template.spec.containers.0.image": str,
        "spec.replicatedJobs.0.template.spec.template.spec.containers.0.command": list,
    },
    "skypilot.yaml": {
        "name": str,
        "num_nodes": int,
        "resources.accelerators": str,
        "resources.use_spot": bool,
        "setup": str,
        "run": str,
        "file_mounts./runs.mode": str,
    },
}


def test_every_launch_file_is_known():
    assert sorted(p.name for p in LAUNCH.iterdir()) == sorted((*SCRIPTS, *MANIFESTS))


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_parse(name):
    subprocess.run(["bash", "-n", str(LAUNCH / name)], check=True)
    assert "set -euo pipefail" in (LAUNCH / name).read_text()


def at(tree, path: str):
    for part in path.split("."):
        tree = tree[int(part) if part.isdigit() else part]
    return tree


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_have_what_their_schema_requires(name):
    tree = yaml.safe_load((LAUNCH / name).read_text())
    for path, kind in REQUIRED[name].items():
        assert isinstance(at(tree, path), kind), path


def test_the_jobset_runs_one_pod_per_host():
    job = at(yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text()), "spec.replicatedJobs.0")
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] and spec["completionMode"] == "Indexed"
    (pod,) = spec["template"]["spec"]["containers"]
    mounts = {mount["name"] for mount in pod["volumeMounts"]}
    assert mounts == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}


def devices_of(name: str) -> int:
    text = (LAUNCH / name).read_text()
    if name == "gke_jobset.yaml":
        spec = at(yaml.safe_load(text), "spec.replicatedJobs.0.template.spec")
        return (
            spec["completions"]
            * at(spec, "template.spec.containers.0.resources.limits")["google.com/tpu"]
        )
    if name == "skypilot.yaml":
        tree = yaml.safe_load(text)
        return tree["num_nodes"] * int(tree["resources"]["accelerators"].partition(":")[2])
    factors = {
        "slurm_gpu.sbatch": r"(?:--nodes=|--ntasks-per-node=)(\d+)",
        "tpu_pod.sh": r"TPU_TYPE:-v6e-(\d+)",
        "local_multiprocess.sh": r"local_multiprocess.sh (\d+)",
    }
    return math.prod(sorted({int(n) for n in re.findall(factors[name], text)}))


@pytest.mark.parametrize("name", (*SCRIPTS, *MANIFESTS))
def test_batches_divide_over_the_devices(name):
    """Those of the config file that is named, over as many as are asked for."""
    (file,) = set(re.findall(r"--config=([\w./]+\.py)", (LAUNCH / name).read_text()))
    cfg, devices = runpy.run_path(str(REPO / file))["get_config"](), devices_of(name)
    assert devices > 1 and cfg.train.batch % devices == 0 == cfg.teacher.batch % devices


def test_the_script_in_the_skypilot_file_parses():
    run = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())["run"]
    subprocess.run(["bash", "-n"], input=run, text=True, check=True)


@pytest.mark.parametrize("name", (*SCRIPTS, *MANIFESTS))
def test_every_flag_and_file_exists(name):
    text = (LAUNCH / name).read_text()
    assert "llmsrec_jax.main" in text and "--distributed=" in text
    for setting, value in re.findall(r"--config\.([\w.]+)=([^\s\"']+)", text):
        kind = type(next(v for k, v, _ in config.flatten(config.Config()) if k == setting))
        rules.validate(config.apply(config.Config(), {setting: kind(value)}))
    for file in re.findall(r"--config=([\w./]+\.py)", text):
        assert (REPO / Path(file)).is_file(), file
    for flag in re.findall(r"llmsrec_jax\.main[^\n]*? --(\w+)[= ]", text):
        assert flag in main.flags.FLAGS, flag
