"""Launches on several processes and machines, as the docs give them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

REPOSITORY = Path(__file__).parent.parent.parent
LAUNCH = REPOSITORY / "recipes" / "launch"
QUICK = ["--max-train", "300", "--max-test", "100", "--batch-size", "100", "--epochs", "2"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
CPU = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    script = [sys.executable, str(REPOSITORY / "recipes" / "train.py"), *QUICK, "--output", str(folder)]
    subprocess.run(script, env=CPU, check=True, timeout=300, capture_output=True)
    return metrics_of(folder)


def test_two_machines_train_as_one(one_process, tmp_path):
    """Two launchers, as on two machines, that meet at an address; each here has a loopback address of its own."""
    port = free_port()
    launchers = []
    for rank in range(2):
        where = ["--nnodes", "2", "--nproc_per_node", "1", "--node_rank", str(rank), "--master_port", str(port)]
        where += ["--master_addr", "127.0.0.1", "--local_addr", f"127.0.0.{rank + 1}"]
        script = [str(REPOSITORY / "recipes" / "train.py"), *QUICK, "--output", str(tmp_path / "run")]
        environment = {**CPU, "GLOO_SOCKET_IFNAME": "lo"}
        launchers.append(
            subprocess.Popen(
                [*TORCHRUN, *where, *script], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
        )
    for launcher in launchers:
        errors = launcher.communicate(timeout=300)[1]
        assert launcher.returncode == 0, errors.decode()
    metrics = metrics_of(tmp_path / "run")
    assert metrics["processes"] == 2
    assert metrics["train/final_loss"] == pytest.approx(one_process["train/final_loss"], rel=0.1)


@pytest.mark.parametrize(
    "options", [["--chunk-size", "20", "--positives-cap", "4"], ["--queue-size", "400", "--momentum", "0.9"]]
)
def test_large_batches_on_two_processes(options, tmp_path):
    script = [str(REPOSITORY / "recipes" / "train.py"), *QUICK, *options, "--output", str(tmp_path / "run")]
    command = [*TORCHRUN, "--standalone", "--nproc_per_node", "2", *script]
    subprocess.run(command, env=CPU, check=True, timeout=300, capture_output=True)
    assert metrics_of(tmp_path / "run")["linear_probe/top1"] > 0.8


@pytest.mark.parametrize(("name", "processes"), [("one_gpu", 1), ("several_gpus", 8), ("several_machines", 16)])
def test_accelerate_reads_the_configs(name, processes):
    config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
    assert config.num_processes == processes
    assert config.mixed_precision == "bf16"
    assert not config.use_cpu
