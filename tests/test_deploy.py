"""scripts/ for clusters and containers: dry runs, linters, schemas; no Slurm, Kubernetes or Docker.

`pip install -r requirements/deploy.txt` brings the linters and schemas.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from fcos_recipe import exit_codes
from fcos_recipe.commands.launch import HEADLINE, prepare
from fcos_recipe.launch import supervise
from tests.conftest import ROOT


def tool(name: str) -> str:
    """A program beside this Python, else on PATH; skips without it."""
    place = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if found := shutil.which(name, path=place):
        return found
    pytest.skip(f"no {name} (pip install -r requirements/deploy.txt)")


# ---- Slurm --------------------------------------------------------------------------------------

SCONTROL = """#!/bin/sh
case $1 in
show) printf 'node-a\\nnode-b\\n' ;;
*) echo "$@" >> "$STAND_IN/requeued" ;;
esac
"""
# Starts the command once per host, as srun does; passes signals on; the highest code is its own.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
pids=()
for node in 0 1; do
    SLURM_NODEID=$node "$@" > "$STAND_IN/host-$node" 2>&1 &
    pids+=($!)
done
trap 'kill -TERM "${pids[@]}"' TERM
code=0
for pid in "${pids[@]}"; do
    while :; do
        wait "$pid"; one=$?
        kill -0 "$pid" 2>/dev/null || break
    done
    wait "$pid"; again=$?; [ $again -eq 127 ] || one=$again
    [ $one -le $code ] || code=$one
done
exit $code
"""


@pytest.fixture
def slurm(tmp_path):
    """`start(checkout, arguments)` runs the batch script as Slurm would on two hosts."""
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def start(checkout, *arguments, **variables):
        environment = {
            **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "STAND_IN": str(tmp_path),
            "SLURM_JOB_ID": "17", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node-[a-b]",
            "SLURM_SUBMIT_DIR": str(checkout), "DEVICE": "cpu", "PYTHON": sys.executable,
            **variables,
        }  # fmt: skip
        return subprocess.Popen(
            ["bash", str(ROOT / "scripts" / "train.sbatch"), *arguments], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
        )  # fmt: skip

    return start


def test_slurm_starts_one_launcher_per_host(slurm, tmp_path):
    config = "configs/fcos/fcos_r18_fpn_demo.yml"
    # the host is one that has this machine's name for itself, so that node 0 is here
    (tmp_path / "scontrol").write_text("#!/bin/sh\nprintf 'localhost\\nnode-b\\n'\n")
    job = slurm(ROOT, config, "--eval", "--gpus", "2", "--dry-run", PORT="29777")
    said = job.communicate(timeout=120)[0]
    assert job.returncode == 0 and "2 hosts, rank 0 on localhost:29777" in said, said
    for node in (0, 1):
        plan = (tmp_path / f"host-{node}").read_text()
        assert f"--nnodes 2 --master 127.0.0.1:29777 --rank {node}" in plan, plan
        assert f"tools/train.py -c {config} --eval --resume auto" in plan
    assert not (tmp_path / "requeued").exists()


def test_slurm_puts_a_preempted_job_back(slurm, tmp_path):
    """SIGTERM to the step and to the batch shell, both of which Slurm may do."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "train.sh").write_text(
        "trap 'sleep 1; exit 75' TERM\necho up\nwhile :; do sleep 0.1; done\n"
    )
    job = slurm(tmp_path, "config.yml")
    end = time.monotonic() + 20
    while not all("up" in p.read_text() if (p := tmp_path / f"host-{n}").exists() else 0
                  for n in (0, 1)):  # fmt: skip
        assert time.monotonic() < end
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    step = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True).stdout
    os.kill(int(step.split()[0]), signal.SIGTERM)
    said = job.communicate(timeout=30)[0]
    assert job.returncode == exit_codes.SAVED, said
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"


def test_slurm_leaves_a_failed_job_alone(slurm, tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "train.sh").write_text("exit 124\n")
    job = slurm(tmp_path)
    job.communicate(timeout=30)
    assert job.returncode == exit_codes.HUNG and not (tmp_path / "requeued").exists()
    alone = slurm(tmp_path, SLURM_JOB_ID="")
    assert "error: this is a job for Slurm" in alone.communicate(timeout=30)[0]
    assert alone.returncode == exit_codes.BAD_INPUT


def test_slurm_leaves_time_to_save():
    text = (ROOT / "scripts" / "train.sbatch").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.M))
    assert options["ntasks-per-node"] == "1" and "requeue" in options
    assert options["open-mode"] == "append"  # a requeued job would empty the log
    name, seconds = options["signal"].split("@")
    assert name == "TERM" and int(seconds) > supervise.STOP_GRACE


# ---- Kubernetes ---------------------------------------------------------------------------------

VALUES = {
    "NAME": "fcos", "IMAGE": "registry.example/fcos:0.1", "NODES": "2", "CARDS": "8",
    "CARD_RESOURCE": "iluvatar.com/gpu", "CONFIG": HEADLINE, "DATA_CLAIM": "coco",
    "OUTPUT_CLAIM": "runs",
}  # fmt: skip


def manifest(name: str) -> dict:
    """As `envsubst` makes it of the variables that its header exports."""
    text = (ROOT / "scripts" / "k8s" / name).read_text()
    header = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    used = set(re.findall(r"\$\{?([A-Za-z_]\w*)\}?", body))
    assert used == set(re.findall(r"\b([A-Z_]+)=\S", header)), "header and manifest differ"
    return yaml.safe_load(re.sub(r"\$\{(\w+)\}", lambda found: VALUES[found[1]], body))


def pod_of(document: dict) -> dict:
    if document["kind"] == "PaddleJob":
        return document["spec"]["paddleReplicaSpecs"]["Worker"]["template"]
    return document["spec"]["template"]


def test_manifests_fit_the_schemas_of_kubernetes():
    """A PaddleJob's pod is judged as a PodTemplate; the rest of it in the next test."""
    validate = pytest.importorskip("kubernetes_validate", reason="see requirements/deploy.txt")
    wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}}
    for version in ("1.31", "1.37"):
        validate.validate(manifest("job.yaml"), version, strict=True)
        pod = pod_of(manifest("paddlejob.yaml"))
        validate.validate({**wrapped, "template": pod}, version, strict=True)
        pod["spec"]["containers"][0]["volumeMount"] = []
        with pytest.raises(validate.ValidationError):
            validate.validate({**wrapped, "template": pod}, version, strict=True)


def test_paddlejob_is_what_the_operator_reads():
    """Names and values of the operator's API v1, as its release 1.9.0 has them."""
    job = manifest("paddlejob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PaddleJob")
    spec = job["spec"]
    assert set(spec) <= {"elasticPolicy", "paddleReplicaSpecs", "runPolicy"}
    assert set(spec["runPolicy"]) <= {
        "activeDeadlineSeconds", "backoffLimit", "cleanPodPolicy", "managedBy", "schedulingPolicy",
        "suspend", "ttlSecondsAfterFinished",
    }  # fmt: skip
    # without a Master the operator runs collective mode, and worker 0 is the meeting place
    assert set(spec["paddleReplicaSpecs"]) == {"Worker"}
    worker = spec["paddleReplicaSpecs"]["Worker"]
    assert set(worker) <= {"replicas", "restartPolicy", "template"}
    assert worker["replicas"] == 2 and worker["restartPolicy"] == "OnFailure"
    (container,) = worker["template"]["spec"]["containers"]
    assert container["name"] == "paddle"
    assert [port["name"] for port in container["ports"]] == ["master"]
    # the operator appends these itself
    given = {entry["name"] for entry in container["env"]}
    assert not given & {"PADDLE_MASTER", "PADDLE_NNODES", "PADDLE_JOB_ID", "POD_IP_DUMMY"}


@pytest.mark.parametrize("name", ["paddlejob.yaml", "job.yaml"])
def test_pods_run_as_they_should(name, monkeypatch):
    document = manifest(name)
    pod = pod_of(document)["spec"]
    (container,) = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] > supervise.STOP_GRACE + supervise.GRACE
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert container["resources"] == {"limits": {"iluvatar.com/gpu": 8}}
    volumes = {v["name"]: v for v in pod["volumes"]}
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    assert {m["name"] for m in container["volumeMounts"]} == set(volumes)
    if name == "job.yaml":
        rules = document["spec"]["podFailurePolicy"]["rules"]
        codes = {r["onExitCodes"]["values"][0]: r["action"] for r in rules if "onExitCodes" in r}
        assert codes == {exit_codes.BAD_INPUT: "FailJob", exit_codes.SAVED: "Ignore"}
    # the command line is one that scripts/train.sh takes, with what the operator adds
    monkeypatch.setenv("DEVICE", "cpu")
    words = [*container["command"][2:], *container["args"]]
    if name == "paddlejob.yaml":
        monkeypatch.setenv("PADDLE_NNODES", "2")
        monkeypatch.setenv("PADDLE_MASTER", "localhost:36543")
        words = [word.replace("$(NODE_RANK)", "1") for word in words]
    run, _ = prepare(words)
    assert run.ranks == 8 and run.run_dir == Path("/output/fcos")
    assert "--resume=auto" in run.command and "TrainDataset.dataset_dir=/data" in run.command
    assert bool(run.cluster) == (name == "paddlejob.yaml")


# ---- Docker -------------------------------------------------------------------------------------

DOCKERFILES = sorted((ROOT / "scripts" / "docker").glob("Dockerfile.*"))


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, arguments), comments left out and lines joined."""
    lines = [x for x in path.read_text().splitlines() if not x.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(" ", 1)) for line in text.splitlines() if line.strip()]


def test_dockerfiles_pass_the_linter():
    command = [tool("hadolint"), *map(str, DOCKERFILES)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.suffix[1:])
def test_dockerfiles_keep_their_promises(path):
    steps = instructions(path)
    base = next(text for kind, text in steps if kind == "ARG")
    # a base of a full version, but for the vendor's, which only the user can name
    assert base == "BASE" if path.suffix == ".ixuca" else re.search(r":\d+\.\d+\.\d+-", base)
    assert [text for kind, text in steps if kind == "FROM"] == ["${BASE}"]
    assert [text for kind, text in steps if kind == "USER"][-1] == "10001"
    (install,) = [i for i, (_, text) in enumerate(steps) if "bash scripts/install.sh" in text]
    modes = {".cpu": "cpu", ".nvidia": "gpu", ".ixuca": "vendor"}
    assert f"--mode {modes[path.suffix]}" in steps[install][1]
    code = steps.index(("COPY", ". ."))
    assert install < code  # a change of code leaves the packages' layer alone
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for kind, text in steps[:code]:
        for source in text.split()[:-1] if kind == "COPY" else ():
            assert list(ROOT.glob(source)), f"{path.name}: COPY {source}: no such file"
            top = source.split("/")[0]
            assert f"!{top}" in ignored, f".dockerignore keeps {source} away"


@pytest.mark.slow
def test_the_steps_of_the_cpu_image_work_in_a_clean_directory(tmp_path):
    """What a build would run, but for the system's packages and its user; needs PyPI."""
    environment = {**os.environ, "PATH": f"{tmp_path}/.venv/bin:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    kept = [x[1:] for x in (ROOT / ".dockerignore").read_text().splitlines() if x.startswith("!")]
    for kind, text in instructions(ROOT / "scripts" / "docker" / "Dockerfile.cpu"):
        if kind == "COPY":
            sources = kept if text == ". ." else text.split()[:-1]
            for source in sources:
                for found in ROOT.glob(source):
                    target = tmp_path / found.relative_to(ROOT)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    skip = shutil.ignore_patterns("__pycache__")
                    if found.is_dir():
                        shutil.copytree(found, target, dirs_exist_ok=True, ignore=skip)
                    else:
                        shutil.copy2(found, target)
        elif kind == "RUN" and not re.match("apt-get|useradd", text):
            subprocess.run(["bash", "-euo", "pipefail", "-c", text], cwd=tmp_path, check=True,
                           env=environment, timeout=500)  # fmt: skip
    done = subprocess.run(["bash", "scripts/train.sh", "--gpus", "1", "--dry-run", "-c",
                           "configs/fcos/fcos_r18_fpn_demo.yml"], cwd=tmp_path, text=True,
                          env={**environment, "DEVICE": "cpu"}, capture_output=True)  # fmt: skip
    assert done.returncode == 0 and f"{tmp_path}/.venv/bin/python" in done.stdout, done.stderr
    done = subprocess.run(["fcos", "--version"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
