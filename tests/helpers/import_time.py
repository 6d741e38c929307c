"""What importing the package costs: CPU seconds of fresh interpreters, ours beside pytorch-metric-learning's.

python tests/helpers/import_time.py        # of the package that this Python finds
"""

import os
import subprocess
import sys

BASE = "import torch, pytorch_metric_learning.losses"
OURS = "from pml_supcon import losses, samplers, testers"
LIMIT = 1.2


def cpu_seconds(statement: str) -> float:
    """Of an interpreter that runs the statement and ends: user and system time, which other processes hardly change."""
    interpreter = subprocess.Popen([sys.executable, "-c", statement], cwd=os.sep)
    _, status, usage = os.wait4(interpreter.pid, 0)
    interpreter.returncode = os.waitstatus_to_exitcode(status)
    if interpreter.returncode:
        raise RuntimeError(f"Expected {statement!r} to run, but it ended with status {interpreter.returncode}")
    return usage.ru_utime + usage.ru_stime


def ratio(statement: str, rounds: int = 5) -> float:
    """Return the CPU time of the statement over the time of `BASE`, each the least of several runs taken in turns."""
    pairs = [(cpu_seconds(statement), cpu_seconds(BASE)) for _ in range(rounds)]
    ours, base = map(min, zip(*pairs, strict=True))
    return ours / base


def main() -> None:
    """Print the ratios; end with status 1 where one is above the limit."""
    found = {statement: ratio(statement) for statement in ("import pml_supcon", OURS)}
    print("; ".join(f"`{name}` {value:.2f}" for name, value in found.items()), f"of the CPU time of `{BASE}`")
    sys.exit(any(value > LIMIT for value in found.values()))


if __name__ == "__main__":
    main()
