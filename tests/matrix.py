"""Run pytest under several settings of the processor and print a Markdown table with the closing line of each run.

    make test-matrix ARGS="tests/functional -k tiled"

Without `-m` the slow tests are left out. The output of failed runs goes to stderr; the exit status is then 1.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS")
BUSY = "all cores busy"
SETTINGS = (
    "ATEN_CPU_CAPABILITY=default",
    "ATEN_CPU_CAPABILITY=avx2",
    "nothing set",
    "ONEDNN_MAX_CPU_ISA=AVX2",
    "OMP_NUM_THREADS=1",
    "OMP_NUM_THREADS=4",
    BUSY,
)


@contextmanager
def busy_cores(number: int) -> Iterator[None]:
    """Run that number of busy loops, which end with the block, or with this process if it is killed."""
    loop = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100_000))"
    loops = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(number)]
    try:
        yield
    finally:
        for process in loops:
            process.kill()
            process.wait()


def passes(setting: str, arguments: list[str]) -> bool:
    """Run pytest under a setting, print a row of the table, and return True if the run passed."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment |= dict([setting.split("=")]) if "=" in setting else {}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "--dist", "loadfile", *arguments]
    with busy_cores((os.cpu_count() or 1) if setting == BUSY else 0):
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.strip().splitlines() or [f"exit status {done.returncode}"]
    print(f"| {setting} | {lines[-1].strip('= ')} |", flush=True)
    if done.returncode:
        print(done.stdout, file=sys.stderr)
    return done.returncode == 0


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[1])
    selected = sys.argv[1:] if "-m" in sys.argv else ["-m", "not slow", *sys.argv[1:]]
    print("| setting | result of pytest |\n| --- | --- |", flush=True)
    sys.exit(not all([passes(setting, selected) for setting in SETTINGS]))
