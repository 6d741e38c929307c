"""Run the checks to make first on a machine with a GPU, in a quarter of an hour.

    python benchmarks/first_gpu_run.py [--quick] [--device cpu] [--only CHECK ...] [--output runs/first_gpu_run]

Each check is a process of its own with a time limit; a check that fails stops no other. The output of each is in the
output folder, and `summary.json` has the outcomes.

- numerics: the kernels against the definition in float64;
- real: the same on batches of real size, where the block shapes are timed;
- shapes: the milliseconds of every candidate of the block shape, N = 16,384 and 65,536, D = 128, 256 and 512, for
  bfloat16 embeddings, medians;
- few_anchors: 256 anchors against 65,536 references, on `triton` and on `reference`;
- dtypes: a step of float32, float16 and bfloat16 embeddings, N = 65,536, D = 128;
- sanitizer: NVIDIA's compute-sanitizer on a small batch with a cap and anchors of the first view;
- no_compiler: a process without a C compiler computes a loss;
- train: `recipes/train.py` for 20 steps;
- peers: `benchmarks/gpu.py`, the losses of others and the floor.

`--quick --device cpu` only tries the script, on tiny batches: in Triton's interpreter, and with kernels that are
compiled for a GPU in place of timed.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from compiled import compile_only, obstacle
from providers import Case
from records import environment
from tables import markdown

from pml_supcon.functional import supcon_loss
from pml_supcon.functional.supcon import triton as backend

ROOT = Path(__file__).resolve().parent.parent
NUMERICS = "tests/functional/test_supcon_triton_numerics.py"


class Check(NamedTuple):
    """A command with its time limit in seconds; the variables of its environment, or the reason to skip it."""

    command: list[str]
    limit_s: int
    variables: dict[str, str]
    skipped: str | None = None


def main(arguments: Sequence[str] | None = None) -> dict[str, str]:
    """Run the checks, print and write their outcomes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny batches, only to try the script")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--only", nargs="+", metavar="CHECK", help="the checks to run (default: all)")
    parser.add_argument("--output", type=Path, default=ROOT / "runs/first_gpu_run")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # one check, in this process
    asked = parser.parse_args(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device")
    if asked.part:
        PARTS[asked.part](asked.device, asked.quick)
        return {}
    checks = all_checks(asked.device, asked.quick, asked.output)
    if unknown := set(asked.only or ()) - checks.keys():
        parser.error(f"--only: expected some of {', '.join(checks)}, but got {', '.join(sorted(unknown))}")
    asked.output.mkdir(parents=True, exist_ok=True)
    outcomes = {}
    for name in asked.only or checks:
        outcomes[name] = run(name, checks[name], asked.output)
        print(f"{name}: {outcomes[name]}", flush=True)
    summary = {"environment": environment(asked.device), "outcomes": outcomes}
    (asked.output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return outcomes


def all_checks(device: str, quick: bool, output: Path) -> dict[str, Check]:
    """Return the checks by name."""
    on_cpu = device == "cpu"
    interpreted = {"TRITON_INTERPRET": "1"} if on_cpu else {}
    python, here = [sys.executable], [sys.executable, __file__, "--device", device, *(["--quick"] if quick else [])]
    # the kernels compile for most of the time
    numerics = [*python, "-m", "pytest", "-q", "-p", "no:cacheprovider", NUMERICS, *([] if quick else ["-n", "8"])]
    sanitizer = shutil.which("compute-sanitizer")
    bare = output / "no_compiler"  # an empty folder, in place of all folders of programs
    bare.mkdir(parents=True, exist_ok=True)
    train = [*python, "recipes/train.py", "--epochs", "1" if quick else "4", "--output", str(output / "train")]
    gpu_script = [*python, "benchmarks/gpu.py", "--device", device, *(["--quick"] if quick else [])]
    return {
        "numerics": Check([*numerics, "-k", "64_bits" if quick else "not real"], 300, interpreted),
        "real": Check([*numerics, "-k", "real"], 120, {}, "needs a GPU" if on_cpu else None),
        "shapes": Check([*here, "--part", "shapes"], 240, {}, obstacle() if on_cpu else None),
        "few_anchors": Check([*here, "--part", "few_anchors"], 60, interpreted),
        "dtypes": Check([*here, "--part", "dtypes"], 60, interpreted),
        "sanitizer": Check(
            [*([sanitizer, "--error-exitcode", "9"] if sanitizer else []), *here, "--part", "small_batch"],
            90,
            interpreted,
            None if sanitizer or on_cpu else "compute-sanitizer is not in the PATH",
        ),
        "no_compiler": Check([*here, "--part", "one_loss"], 60, {"PATH": str(bare), "CC": ""}),
        "train": Check(train, 120, {}),
        "peers": Check(gpu_script, 300, {}),
    }


def run(name: str, check: Check, output: Path) -> str:
    """Run a check; return its outcome: "ok" with the seconds, or the reason why it is not."""
    if check.skipped:
        return f"skipped: {check.skipped}"
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    variables = {key: value for key, value in {**os.environ, "PYTHONPATH": paths, **check.variables}.items() if value}
    log = output / f"{name}.txt"
    start = time.monotonic()
    with log.open("w") as file:
        try:
            done = subprocess.run(
                check.command,
                cwd=ROOT,
                env=variables,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=check.limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"over {check.limit_s} s; see {log}"
    took = f"{time.monotonic() - start:.0f} s"
    return f"ok, {took}" if done.returncode == 0 else f"failed with exit status {done.returncode}, {took}; see {log}"


def step(rows: torch.Tensor, labels: torch.Tensor, name: str, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean loss and the gradient of the embeddings."""
    leaf = rows.detach().requires_grad_()
    loss = supcon_loss(leaf, labels, backend=name, **options).mean()
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def milliseconds(work: Callable[[], Any], device: str) -> float:
    """Return the median milliseconds of a few calls, after one that compiles."""
    if device == "cuda":
        from triton.testing import do_bench

        return float(do_bench(work, warmup=50, rep=500, return_mode="median"))
    times = []
    for _ in range(2):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:]) * 1e3


def shapes(device: str, quick: bool) -> None:
    """Print the time of every candidate of the block shape of every kernel that is tuned."""
    header = ["kernel", "N", "D", "tile", "warps", "stages", "ms"]
    rows: list[list[str]] = []
    for N in (16384,) if quick else (16384, 65536):
        for D in (128,) if quick else (128, 256, 512):
            embeddings, labels = Case(N, D, dtype="bfloat16", device=device).rows()
            # without a GPU kernels are compiled, not run
            with compile_only(90, every=True) if device == "cpu" else nullcontext(), timed_shapes(device) as found:
                leaf = embeddings.requires_grad_()
                torch.autograd.grad(launched(leaf, labels).sum(), leaf)
            for kernel, config, ms in found:
                block = config.kwargs
                tile = f"{block.get('BLOCK_M')} x {block.get('BLOCK_N')}"
                cells = [kernel, f"{N:,}", str(D), tile, str(config.num_warps), str(config.num_stages), f"{ms:.3f}"]
                rows.append(cells)
                print(*cells, flush=True)
    print(markdown(header, rows))
    if not rows:
        raise RuntimeError("No kernel was tuned")


def launched(rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the losses of anchors on the backend `triton`, without the question whether it can run here."""
    with mock.patch.object(backend, "refusal", return_value=None):
        return supcon_loss(rows, labels, backend="triton").losses


@contextmanager
def timed_shapes(device: str) -> Iterator[list[tuple[str, Any, float]]]:
    """Time every candidate where a kernel is tuned: its name, the configuration and the milliseconds."""
    import triton

    found: list[tuple[str, Any, float]] = []

    def tune(tuner: Any, *args: Any, **arguments: Any) -> None:
        tuner.nargs = dict(zip(tuner.arg_names, args, strict=False))
        named = {name: value for name, value in arguments.items() if name not in ("grid", "warmup")}
        for config in tuner.prune_configs(named):
            ms = milliseconds(partial(tuner.fn.run, *args, **arguments, **config.all_kwargs()), device)
            found.append((tuner.base_fn.__name__, config, ms))

    with mock.patch.object(triton.runtime.Autotuner, "run", tune):
        yield found


def few_anchors(device: str, quick: bool) -> None:
    """Compare a small batch against many references on `triton` and on `reference`: time, losses and gradients."""
    anchors, references = (16, 96) if quick else (256, 65536)
    (batch, labels), (others, other_labels) = (
        Case(number, dtype="bfloat16", device=device).rows(seed) for seed, number in enumerate((anchors, references))
    )
    options: dict[str, Any] = {"ref_emb": others, "ref_labels": other_labels}
    results = {name: step(batch, labels, name, **options) for name in ("triton", "reference")}
    for name in results:
        print(f"{name}: {milliseconds(partial(step, batch, labels, name, **options), device):.3f} ms")
    torch.testing.assert_close(*(loss for loss, _ in results.values()), rtol=1e-3, atol=1e-3)
    ours, right = (gradient.double().flatten() for _, gradient in results.values())
    cosine = torch.nn.functional.cosine_similarity(ours, right, dim=0).item()
    print(f"cosine of the gradients: {cosine:.6f}")
    if cosine < 0.998:
        raise RuntimeError("The gradients differ")


def dtypes(device: str, quick: bool) -> None:
    """Print the time of a step in each dtype of the embeddings."""
    for dtype in backend.DTYPES:
        rows, labels = Case(64 if quick else 65536, dtype=str(dtype).removeprefix("torch."), device=device).rows()
        print(f"{dtype}: {milliseconds(partial(step, rows, labels, 'triton'), device):.3f} ms")


def small_batch(device: str, quick: bool) -> None:
    """Compute a step whose last tiles are not full, with a cap and anchors of the first view."""
    rows, labels = Case(40 if quick else 200, 100, classes=25, dtype="float16", device=device).rows()
    loss, gradient = step(rows, labels, "triton", num_views=2, positives_cap=2, contrast_mode="one", summation="in")
    if not (loss.isfinite() and gradient.isfinite().all()):
        raise RuntimeError("The loss or the gradient is not finite")


def one_loss(device: str, quick: bool) -> None:
    """Compute a step on the backend that "auto" takes; a warning says why it is not `triton`."""
    loss, _ = step(*Case(64, device=device).rows(), "auto")
    print(f"loss {loss.item():.6f}")


PARTS: dict[str, Callable[[str, bool], None]] = {
    part.__name__: part for part in (shapes, few_anchors, dtypes, small_batch, one_loss)
}

if __name__ == "__main__":
    main()
