"""The examples of the page of hosts resume exactly, also in hosts that are no dependency, where they are installed."""

import os
import subprocess
import sys

import pytest
from helpers.code_blocks import blocks_of
from helpers.workbench import CHECKOUT

PAGE = CHECKOUT / "docs/guides/hosts.md"
TWO = ("-m", "torch.distributed.run", "--nproc_per_node", "2")
#: The host, the program, and its argument for a resume after step N.
HOSTS = {
    "accelerate": (("own_loop.py",), "resume"),
    "lightning": (("in_lightning.py", "1"), "lightning/step={}.ckpt"),
    "lightning, two processes": (("in_lightning.py", "2"), "lightning/step={}.ckpt"),
    "transformers": (("in_trainer.py",), "trainer/checkpoint-{}"),
    "transformers, two processes": ((*TWO, "in_trainer.py"), "trainer/checkpoint-{}"),
}


def run(folder, *arguments):
    """Return the lines of a program that tell the losses or the weights."""
    env = os.environ | {"PYTHONPATH": f"{folder}:{CHECKOUT}", "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [line for line in done.stdout.splitlines() if line.startswith(("epoch", "weights"))]


@pytest.mark.slow
@pytest.mark.parametrize("host", HOSTS)
def test_a_resume_is_exact(tmp_path, host):
    pytest.importorskip(host.partition(",")[0])
    for block in blocks_of(PAGE.read_text(), PAGE.name):
        if block.title:
            (tmp_path / block.title).write_text(block.code)
    program, place = HOSTS[host]
    whole = run(tmp_path, *program)
    for step in (6, 4) if "{}" in place else (6,):  # 6 is in the middle of an epoch, 4 is the end of one
        resumed = run(tmp_path, *program, place.format(step))
        assert resumed == (whole[-1:] if whole[0].startswith("weights") else whole[step:])
        assert len(resumed) == (1 if "{}" in place else 6)
