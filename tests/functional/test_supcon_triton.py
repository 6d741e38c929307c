"""The Triton backend without a GPU: its errors, its kernels in Triton's interpreter, and compiled for a GPU.

`test_supcon_triton_numerics.py` runs in a separate process, because Triton's import decides for the whole process
whether kernels are compiled or interpreted.
"""

import dataclasses
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.supcon_batches import problem_of, random_rows

from pml_supcon.functional import supcon_loss
from pml_supcon.functional.supcon import dense
from pml_supcon.functional.supcon import triton as backend
from pml_supcon.functional.supcon.problem import Problem

NUMERICS = Path(__file__).with_name("test_supcon_triton_numerics.py")
TIGHT_CLASSES = Path(__file__).with_name("test_supcon_tight_classes.py")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_triton = pytest.mark.skipif(not backend.INSTALLED, reason="needs triton")
compiles = pytest.mark.skipif(not backend.INSTALLED or INTERPRETED, reason="needs triton, compiling")

PAIRS = tuple(torch.tensor([i]) for i in (0, 1, 0, 2))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs on any device")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {},
            "its kernels run on NVIDIA GPUs, and the embeddings are on cpu; backends that can: dense, tiled, reference",
        ),
        ({"similarity": torch.cdist}, "a similarity other than the dot product needs the whole matrix"),
        ({"indices_tuple": PAIRS}, "indices_tuple lists pairs, which it does not read"),
    ],
)
def test_an_explicit_choice_that_cannot_run_raises(options, reason):
    rows, labels = random_rows(6, 3, dtype=torch.float32), torch.arange(6) // 2
    with pytest.raises(ValueError, match=f"backend='triton' cannot do this: {reason}"):
        supcon_loss(rows, labels, backend="triton", **options)
    assert supcon_loss(rows, labels, backend="auto", **options).losses.isfinite().all()


def test_cannot_run_on_float64_without_triton_or_on_old_gpus(monkeypatch):
    problem = problem_of(random_rows(6, 3), torch.arange(6) // 2)
    assert "float32 at most, and the embeddings are torch.float64" in backend.refusal(problem)
    on_gpu = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)
    monkeypatch.setattr(Problem, "transform_refusal", None)
    problem = dataclasses.replace(problem, embeddings=on_gpu)
    monkeypatch.setattr(backend, "INSTALLED", False)
    assert backend.refusal(problem) == "the package triton is not installed"
    monkeypatch.setattr(backend, "INSTALLED", True)
    monkeypatch.setattr(backend, "INTERPRETED", False)
    monkeypatch.setattr(backend.launcher, "refusal", lambda *, warn: None)
    for major, expected in ((8, None), (9, None), (7, "need compute capability 8.0")):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, major=major: SimpleNamespace(major=major))
        found = backend.refusal(problem)
        assert found is None if expected is None else expected in found


def test_the_package_imports_and_runs_without_triton():
    code = """if True:
        import sys
        sys.modules["triton"] = None
        import torch
        from pml_supcon.functional import supcon_loss
        supcon_loss(torch.ones(4, 3), torch.arange(4) // 2)
    """
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available() or INTERPRETED, reason="pytest runs the numerics directly")
@pytest.mark.parametrize(
    ("chosen", "least"),
    [
        ("half_products or parts or triton-bfloat16-0.03 or (mean_of and out-all)", 19),
        pytest.param("triton", 105, marks=pytest.mark.slow),
    ],
)
def test_numerics_in_the_interpreter(chosen, least):
    files = str(NUMERICS), str(TIGHT_CLASSES)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *files]
    options = {"cwd": NUMERICS.parents[2], "env": {**os.environ, "TRITON_INTERPRET": "1"}, "check": False}
    run = subprocess.run([*command, "-k", chosen], capture_output=True, text=True, **options)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) >= least
    assert set(re.findall(r"SKIPPED \[\d+\] .*: (.*)", run.stdout)) <= {"needs a GPU", "triton has no float64"}


@pytest.fixture
def kernels(monkeypatch):
    """List the kernels that are launched on a GPU that is not there, and their arguments; nothing is computed."""
    import triton
    from triton.backends.compiler import GPUTarget

    from pml_supcon.functional.supcon.triton import launch

    launched = []

    def run(function, *args, grid, warmup, **arguments):
        launched.append((function.__name__, grid(arguments) if callable(grid) else grid, arguments))

    def tune(tuner, *args, grid, warmup, **arguments):
        launched.append((tuner.base_fn.__name__, "tuned", arguments))

    properties = {"max_shared_mem": 227 << 10, "multiprocessor_count": 132}
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_benchmarker=lambda: None,  # Triton 3.3 asks for it to create a tuner
        utils=SimpleNamespace(get_device_properties=lambda _: properties),
    )
    holder = triton.runtime.driver
    # Triton 3.5 renamed the attribute.
    monkeypatch.setattr(holder, "_active" if hasattr(holder, "_active") else "active", driver)
    monkeypatch.setattr(triton.JITFunction, "run", run)
    monkeypatch.setattr(triton.runtime.Autotuner, "run", tune)
    launch.multiprocessors.cache_clear()
    yield launched
    launch.multiprocessors.cache_clear()


def step(rows, labels, **options):
    """Run the forward and backward pass, and return the gradients of the rows and of the references."""
    inputs = [x for x in (rows, options.get("ref_emb")) if x is not None]
    losses, _ = backend.anchor_losses(problem_of(rows, labels, **options))
    return torch.autograd.grad(losses, inputs, torch.ones_like(losses))


def mean_step(rows, labels):
    """Run the forward and backward pass of the mean, and return the gradient of the rows."""
    return torch.autograd.grad(backend.mean_loss(problem_of(rows, labels)), rows)


#: Operations of PyTorch that launch no kernel.
ON_THE_HOST = re.compile(
    r"aten::(empty|new_empty|resize|view|_unsafe_view|slice|select|unbind|detach|alias|as_strided)"
)


def calls(event):
    """Return True for an operation of PyTorch that calls others."""
    return event is not None and event.name.startswith("aten::") and len(event.cpu_children) > 0


@compiles
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("number", "most"), [(64, 9), (512, 11)])
@pytest.mark.parametrize("step", [step, mean_step])
def test_a_step_launches_few_kernels(kernels, step, dtype, number, most):
    """Count kernels, ours and PyTorch's, from the embeddings to the losses and back to their gradient."""
    rows, labels = torch.randn(number, 32, dtype=dtype).requires_grad_(), torch.arange(number) // 4
    step(rows, labels)
    kernels.clear()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(rows, labels)
    # operations that another has not called; `to` launches only where it copies
    events = [e for e in profile.events() if e.name.startswith("aten::") and not calls(e.cpu_parent)]
    launches = [e.name for e in events if not (ON_THE_HOST.match(e.name) or (e.name == "aten::to" and not calls(e)))]
    launches.remove("aten::ones_like")  # the upstream gradient of the step
    launches += [name for name, *_ in kernels]
    assert len(launches) <= most, launches


@compiles
def test_shapes_are_timed_for_each_size_unless_algorithms_are_deterministic(kernels):
    def tuned(number, **options):
        kernels.clear()
        step(torch.randn(number, 16).requires_grad_(), torch.arange(number) // 4, **options)
        return [arguments for _, grid, arguments in kernels if grid == "tuned"]

    assert tuned(1024) == []  # few pairs
    small, shifted, large = tuned(5000), tuned(5000, temperature=0.01), tuned(9000)
    assert len(small) == len(large) == 2  # forward, gradient
    assert small[0]["tuning_key"] != large[0]["tuning_key"]
    assert small[0]["tuning_key"] == tuned(5001)[0]["tuning_key"]
    assert [case[0]["SHIFTED"] for case in (small, shifted)] == [False, True]
    try:
        torch.use_deterministic_algorithms(True)
        assert tuned(5000) == []
    finally:
        torch.use_deterministic_algorithms(False)


@compiles
def test_few_anchors_with_many_rows_fill_the_gpu(kernels):
    refs, ref_labels = torch.randn(8192, 16).requires_grad_(), torch.arange(8192) // 64
    step(torch.randn(256, 16).requires_grad_(), torch.arange(256) // 2, ref_emb=refs, ref_labels=ref_labels)
    grids = [grid for name, grid, _ in kernels if name in ("negatives_kernel", "positives_kernel", "gradient_kernel")]
    assert len(grids) == 6  # two regions forward, and two for each of the sides
    assert all(rows * splits * slices >= 64 for rows, splits, slices in grids)


@compiles
def test_stored_rows_need_no_masks():
    from pml_supcon.functional.supcon.triton import blocks

    for columns in (1, 16, 100, 200, 512, 768):
        for parts, kind in ((1, "one"), (2, "parts")):
            layout = blocks.Layout.of(columns, parts, 2)
            assert columns <= layout.WIDTH
            assert layout.WIDTH % layout.BLOCK_K == layout.WIDTH % layout.BLOCK_D == 0
            assert layout.WIDTH * 2 % 16 == 0  # loads of 16 bytes
            shapes = [shape for table in blocks.TABLES[kind] for row in table.values() for shape in row]
            assert all(blocks.GROUP % shape.m == blocks.GROUP % shape.n == 0 for shape in shapes)


@needs_triton
def test_long_sums_keep_small_terms():
    from pml_supcon.functional.supcon.triton.primitives import add_compensated

    term, total, lost = np.float32(0.1), np.float32(0), np.float32(0)
    for _ in range(100_000):
        total, lost = add_compensated.fn(term, total, lost)
    assert abs(total / 1e4 - 1) < 1e-7  # one by one: 1e-4


@pytest.fixture
def launcher():
    from pml_supcon.functional.supcon.triton import launcher

    for once in (launcher.fault, launcher.warn_of):
        once.cache_clear()
    yield launcher
    for once in (launcher.fault, launcher.warn_of):
        once.cache_clear()


def test_a_missing_compiler_is_a_reason(launcher, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert "finds neither gcc nor clang" in launcher.compiler_fault()
    monkeypatch.setenv("CC", str(tmp_path / "none"))
    assert "none does not start (No such file or directory)" in launcher.compiler_fault()
    without_headers = tmp_path / "cc"
    without_headers.write_text("#!/bin/sh\nexit 1\n")
    without_headers.chmod(0o755)
    monkeypatch.setenv("CC", str(without_headers))
    assert "needs Python.h" in launcher.compiler_fault()
    without_headers.write_text("#!/bin/sh\nexit 0\n")
    assert launcher.compiler_fault() is None


def test_without_a_launcher_auto_takes_tiled_and_warns_once(launcher, monkeypatch):
    """Act as on a GPU in an image without a compiler."""
    monkeypatch.setattr(launcher, "fault", lambda: "Triton needs a C compiler")
    monkeypatch.setattr(backend, "refusal", lambda problem: launcher.refusal(warn=problem.options.backend == "auto"))
    monkeypatch.setattr(dense, "PREFERRED_PAIRS", 0)
    rows, labels = random_rows(6, 3, dtype=torch.float32), torch.arange(6) // 2
    with pytest.raises(ValueError, match="backend='triton' cannot do this: Triton needs a C compiler; backends that"):
        supcon_loss(rows, labels, backend="triton")
    with pytest.warns(UserWarning, match="'triton' cannot run here: Triton needs a C compiler. The losses are comp"):
        supcon_loss(rows, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        supcon_loss(rows, labels)
        compiled = torch.compile(lambda x: supcon_loss(x, labels).mean(), fullgraph=True, backend="aot_eager")
        assert compiled(rows).isfinite()


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_driver_is_a_reason(launcher):
    assert launcher.fault().startswith("Triton cannot start here (")


def test_products_are_refused_where_they_cannot_be_done():
    rows, labels = random_rows(6, 3, dtype=torch.float32), torch.arange(6) // 2
    for name in ("tiled", "reference"):
        with pytest.raises(ValueError, match=f"backend='{name}' cannot do this: its products are float32 or float64"):
            supcon_loss(rows, labels, backend=name, products="float16")
        supcon_loss(rows, labels, backend=name, products="float32")
    if not INTERPRETED:
        reason = "backend='triton' cannot do this: its kernels run on NVIDIA GPUs.*; backends that can: none"
        with pytest.raises(ValueError, match=reason):
            supcon_loss(rows, labels, products="float16")
    with pytest.raises(ValueError, match="Expected `normalize=True` with `products='float16'`"):
        supcon_loss(rows, labels, products="float16", normalize=False)
    with pytest.raises(ValueError, match=r"`products` to be one of .*, but got 'tf32'"):
        supcon_loss(rows, labels, products="tf32")
