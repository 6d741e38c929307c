"""Launches on several processes and machines by the commands of the docs."""

import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState
from helpers.process_groups import free_port

from pml_supcon.experiments import app as reproduce
from pml_supcon.training import app as train
from pml_supcon.training.config.parser import parse_settings
from pml_supcon.training.launch import check_launch, make_accelerator
from pml_supcon.training.run import open_run

REPOSITORY = Path(__file__).parent.parent.parent
TWO_MACHINES = REPOSITORY / "benchmarks" / "two_machines.sh"
LAUNCH = REPOSITORY / "pml_supcon" / "configs" / "launch"
TRAIN = str(REPOSITORY / "recipes" / "train.py")
QUICK = ["--max-train", "300", "--max-test", "100", "--batch-size", "100", "--epochs", "2"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
CPU = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def final_loss(folder, processes):
    """Return the final loss of a run on this many processes."""
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["processes"] == processes
    return metrics["train/final_loss"]


@pytest.fixture(scope="module")
def expected_loss(tmp_path_factory):
    """Return the final loss of one process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    script = [sys.executable, TRAIN, *QUICK, "--output", str(folder)]
    subprocess.run(script, env=CPU, check=True, timeout=300, capture_output=True)
    return pytest.approx(final_loss(folder, 1), rel=0.1)


@pytest.mark.slow
def test_two_launchers_train_as_one(expected_loss, tmp_path):
    """Two launchers meet at one address, as on two machines, but without a network between them."""
    launch = [*TORCHRUN, "--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1"]
    launch += ["--master_port", str(free_port())]
    launchers = [
        subprocess.Popen(
            [*launch, "--node_rank", str(rank), TRAIN, *QUICK, "--output", str(tmp_path / "run")],
            env={**CPU, "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    for launcher in launchers:
        errors = launcher.communicate(timeout=300)[1]
        assert launcher.returncode == 0, errors.decode()
    assert final_loss(tmp_path / "run", 2) == expected_loss


@pytest.fixture
def network_namespaces_allowed():
    """Skip the test where network namespaces cannot be created."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need iproute2")
    name = f"try{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"this machine allows no network namespaces: {tried.stderr.strip()}")
    subprocess.run(["ip", "netns", "del", name], check=True)


def on_two_machines(*arguments, python=sys.executable):
    """Run the script of two machines; return its status, its output and its remaining machines."""
    script = subprocess.Popen(
        [str(TWO_MACHINES), *arguments],
        env={**os.environ, "PYTHON": str(python)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    written = script.communicate(timeout=300)[0]
    names = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout.split()
    return script.returncode, written, [name for name in names if f"supcon{script.pid}" in name]


@pytest.mark.slow
def test_two_machines_train_as_one(network_namespaces_allowed, expected_loss, tmp_path):
    """Each machine is a network namespace, joined to the other by a virtual cable alone."""
    status, written, left = on_two_machines(*QUICK, "--output", str(tmp_path / "run"))
    assert status == 0, written
    assert left == []
    assert final_loss(tmp_path / "run", 2) == expected_loss


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_a_machine_that_fails_ends_the_other(network_namespaces_allowed, failing, tmp_path):
    python, waiting = tmp_path / "python", tmp_path / "waiting"
    python.write_text(
        f"""#!/bin/sh
case "$*" in *"--node_rank {failing} "*) until [ -s {waiting} ]; do sleep 0.1; done; echo it broke; exit 3;; esac
echo $$ > {waiting}
exec sleep 600
"""
    )
    python.chmod(0o755)
    status, written, left = on_two_machines("--epochs", "1", python=python)
    assert status == 3
    assert "it broke" in written
    assert left == []
    assert not Path("/proc", waiting.read_text().strip()).exists()


@pytest.mark.slow
@pytest.mark.parametrize("options", ["--positives-cap 4", "--queue-size 400 --momentum 0.9"])
def test_large_batches_on_two_processes(options, tmp_path):
    script = [TRAIN, *QUICK, "--chunk-size", "20", *options.split(), "--output", str(tmp_path / "run")]
    command = [*TORCHRUN, "--standalone", "--nproc_per_node", "2", *script]
    subprocess.run(command, env=CPU, check=True, timeout=300, capture_output=True)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["linear_probe/top1"] > 0.8


@pytest.mark.parametrize(("name", "processes"), [("one_gpu", 1), ("several_gpus", 8), ("several_machines", 16)])
def test_accelerate_reads_the_configs(name, processes):
    config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
    assert config.num_processes == processes
    assert config.mixed_precision == "bf16"
    assert not config.use_cpu


@pytest.fixture
def fresh_state(monkeypatch):
    """Run a test with a new state of Accelerate, on the CPU."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("asked", ["flag", "launcher"])
@pytest.mark.parametrize(("program", "arguments"), [(train.main, []), (reproduce.main, ["losses", "--runs", "{tmp}"])])
def test_half_precision_that_a_cpu_does_not_compute_is_refused(
    program, arguments, asked, fresh_state, tmp_path, monkeypatch, capsys
):
    arguments = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    if asked == "flag":
        arguments += ["--mixed-precision", "fp16"]
    else:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(SystemExit) as ended:
        program([*arguments, *(["--output", str(tmp_path / "run")] if program is train.main else [])])
    assert ended.value.code == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "Expected --mixed_precision (or the launcher's) to be no or bf16 on this device, cpu, but got fp16" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("precision", "device", "native", "refused"),
    [
        ("no", "cpu", False, None),
        ("bf16", "cpu", True, None),
        ("fp16", "cuda", True, None),
        ("fp16", "cpu", False, "no or bf16 on this device, cpu, but got fp16"),
        ("fp8", "cpu", True, "no or bf16 on this device, cpu, but got fp8"),
        ("fp8", "cuda", True, "no, bf16 or fp16 on this device, cuda, but got fp8"),
    ],
)
def test_the_record_names_the_precision_that_is_computed(precision, device, native, refused):
    accelerator = SimpleNamespace(distributed_type=DistributedType.NO, gradient_accumulation_steps=1)
    vars(accelerator).update(mixed_precision=precision, device=torch.device(device), native_amp=native)
    with pytest.raises(ValueError, match=refused) if refused else nullcontext():
        check_launch(accelerator)


def test_an_evaluation_is_in_full_precision_under_any_launcher(fresh_state, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert make_accelerator("no").mixed_precision == "no"


def test_processes_wait_for_a_long_download_or_score(fresh_state):
    assert make_accelerator(None).init_handler.timeout == timedelta(days=1)  # torch's default is 10 or 30 minutes


def test_runs_that_start_in_one_second_have_folders_of_their_own(fresh_state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    accelerator = make_accelerator(None)
    runs = [open_run(parse_settings([]), accelerator) for _ in range(3)]
    assert len({run.path for run in runs}) == 3
    for run in runs:
        run.release()


@pytest.mark.slow
def test_the_end_of_the_launcher_ends_the_run(tmp_path):
    """`accelerate launch` does not forward SIGTERM; its process saves and ends when the launcher has ended."""
    folder = tmp_path / "run"
    launch = [str(Path(sys.executable).parent / "accelerate"), "launch", "--quiet"]
    script = [TRAIN, *QUICK, "--epochs", "500", "--output", str(folder)]
    launcher = subprocess.Popen([*launch, *script], env=CPU, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 300
    while not (folder / "checkpoints" / "step-00000003").exists() and time.monotonic() < until:
        time.sleep(0.1)
    launcher.terminate()
    written = launcher.communicate(timeout=300)[1]  # returns when no process holds the pipe
    assert "train.py: stopped by SIGTERM after step" in written
    assert not (folder / "metrics.json").exists()


DIES_ONCE = """
import faulthandler, os, signal, sys
from pathlib import Path
from pml_supcon.training import app as train
from pml_supcon.training import loop

marker, step = Path(sys.argv.pop(1)), loop.take_step
hung = marker.with_name(f"hung-{os.getpid()}").open("w")
faulthandler.dump_traceback_later(100, exit=True, file=hung)  # gloo sometimes hangs when processes reconnect

def dying(stage, views, labels, number, *more):
    if number == 7 and os.environ["RANK"] == "1" and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return step(stage, views, labels, number, *more)

loop.take_step = dying
train.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_restarted_launch_goes_on(tmp_path):
    """One of two processes is killed; torchrun starts both again with the same arguments."""
    (tmp_path / "script.py").write_text(DIES_ONCE)
    options = [*QUICK, "--epochs", "4", "--save-every", "2", "--output", str(tmp_path / "run"), "--resume"]
    launch = [*TORCHRUN, "--standalone", "--nproc_per_node", "2", "--max_restarts", "6"]
    command = [*launch, str(tmp_path / "script.py"), str(tmp_path / "died"), *options]
    subprocess.run(command, env=CPU, check=True, timeout=600, capture_output=True)
    for trace in tmp_path.glob("hung-*"):
        if trace.read_text():  # seen in `init_process_group` of a restart, before any code of ours
            warnings.warn(f"a process hung:\n{trace.read_text()}", stacklevel=1)
    assert (tmp_path / "died").exists()
    rows = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 13))
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["train/steps"] == 12
