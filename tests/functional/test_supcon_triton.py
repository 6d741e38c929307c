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

import pytest
import torch
from helpers.supcon_batches import problem_of, random_rows

from pml_supcon.functional import supcon_loss
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
        ({}, "its kernels run on NVIDIA GPUs, and the embeddings are on cpu; backends that can: tiled, reference"),
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
    on_gpu = SimpleNamespace(device=torch.device("cuda", 0))
    monkeypatch.setattr(Problem, "transform_refusal", None)
    problem = dataclasses.replace(problem, anchors=on_gpu, input_dtype=torch.float32)
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
    [("half_products or parts or triton-bfloat16-0.03", 15), pytest.param("triton", 105, marks=pytest.mark.slow)],
)
def test_numerics_in_the_interpreter(chosen, least):
    files = str(NUMERICS), str(TIGHT_CLASSES)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *files]
    options = {"cwd": NUMERICS.parents[2], "env": {**os.environ, "TRITON_INTERPRET": "1"}, "check": False}
    run = subprocess.run([*command, "-k", chosen], capture_output=True, text=True, **options)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) >= least
    assert set(re.findall(r"SKIPPED \[\d+\] .*: (.*)", run.stdout)) <= {"needs a GPU", "triton has no float64"}


#: Compute capability, and bytes of shared memory that a program may use.
H100, RTX_4090 = (90, 227 * 1024), (89, 99 * 1024)


@pytest.fixture
def compile_for(monkeypatch, tmp_path):
    """Compile the kernels of a launch for a GPU, with its preferred block shapes, and list them instead of running."""
    import triton
    from triton.backends.compiler import GPUTarget

    launches = []

    def compile_only(tuner, *args, grid, warmup, **arguments):
        tuner.nargs = {}
        (config,) = tuner.prune_configs(arguments)
        kernel = tuner.fn.run(*args, grid=grid, warmup=True, **arguments, **config.all_kwargs())
        launches.append((tuner.base_fn.__name__, kernel, grid(config.kwargs), config.kwargs["BLOCK_M"]))

    def install(capability, shared_memory):
        driver = SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", capability, 32),
            get_current_device=lambda: -capability,  # the key of Triton's cache of kernels: no real device has it
            get_current_stream=lambda device: 0,
            get_benchmarker=lambda: None,  # Triton 3.3 asks for it before it tunes
            utils=SimpleNamespace(get_device_properties=lambda device: {"max_shared_mem": shared_memory}),
        )
        holder = triton.runtime.driver
        # Triton 3.5 renamed the attribute.
        monkeypatch.setattr(holder, "_active" if hasattr(holder, "_active") else "active", driver)
        return launches

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    monkeypatch.setattr(triton.runtime.Autotuner, "run", compile_only)
    return install


def local_memory(kernel, folder):
    """Return the bytes of each thread that the compiler spilled from registers."""
    import triton

    path = folder / "kernel.cubin"
    path.write_bytes(kernel.asm["cubin"])
    command = [Path(triton.__file__).with_name("backends") / "nvidia/bin/cuobjdump", "-res-usage", path]
    report = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(re.search(r"STACK:(\d+)", report.stdout + report.stderr)[1])


ONE_VIEW = {"contrast_mode": "one", "positives_cap": 2, "summation": "in", "denominator": "one_positive",
            "temperature": 0.01}  # fmt: skip


@compiles
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize(
    ("gpu", "dtype", "width", "options", "kernels"),
    [
        (H100, torch.float16, 100, ONE_VIEW, 4),
        (H100, torch.bfloat16, 768, {"denominator": "one_positive"}, 3),
        pytest.param(H100, torch.float32, 128, {"denominator": "negatives"}, 3, marks=pytest.mark.slow),
        pytest.param(RTX_4090, torch.bfloat16, 256, {"summation": "in"}, 3, marks=pytest.mark.slow),
    ],
)
def test_kernels_compile_for_a_gpu(compile_for, tmp_path, gpu, dtype, width, options, kernels):
    """Check what the interpreter cannot: types, shapes of products, shared memory, registers, tensor cores."""
    compiled = compile_for(*gpu)
    rows = random_rows(200, width).to(dtype).requires_grad_()
    losses, _ = backend.anchor_losses(problem_of(rows, torch.arange(100).repeat(2) // 4, num_views=2, **options))
    torch.autograd.grad(losses.sum(), rows)
    names, anchors = [name for name, *_ in compiled], 100 if options is ONE_VIEW else 200
    assert names == ["negatives_kernel", "positives_kernel"] + ["gradient_kernel"] * (kernels - 2)
    for (name, kernel, grid, block), number in zip(compiled, [anchors, anchors, anchors, 200], strict=False):
        assert grid == (-(-number // block), 2 if name == "gradient_kernel" and width > 512 else 1)
        assert kernel.metadata.shared <= gpu[1], name
        assert local_memory(kernel, tmp_path) <= 512, name
        tensor_cores = "wgmma.mma_async" if gpu == H100 else "mma.sync"
        assert (tensor_cores in kernel.asm["ptx"]) == (dtype != torch.float32), name


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
