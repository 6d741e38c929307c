"""The peak memory of a script in a separate process: a process that ran other tests holds their freed blocks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

#: Freed blocks return to the system at once: resident memory is then memory in use; see `benchmarks/memory.py`.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1"}
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def measured(script: str, *arguments: str) -> Any:
    """Return what a script prints as JSON on its last line; skip the test where no process can reset its peak."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not reset the peak memory of a process")
    environment = os.environ | MALLOC | {"PYTHONPATH": str(BENCHMARKS)}
    command = [sys.executable, "-c", script, *arguments]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])
