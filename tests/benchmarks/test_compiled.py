"""The figures of compiled kernels: how they are counted, and ceilings that the kernels keep."""

from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

import compiled
import pytest
import torch
from compiled import Kernel, Loop

from pml_supcon.functional.supcon import triton
from pml_supcon.functional.supcon.options import SupConOptions
from pml_supcon.functional.supcon.problem import build_problem, check_batch

compiles = pytest.mark.skipif(compiled.obstacle() is not None, reason=f"cannot compile kernels: {compiled.obstacle()}")
# the code of a kernel depends on the compiler
TRITON = "3.8"
try:
    INSTALLED = version("triton")
except PackageNotFoundError:
    INSTALLED = "none"
same_compiler = pytest.mark.skipif(
    not INSTALLED.startswith(f"{TRITON}."), reason=f"the ceilings are figures of triton {TRITON}, not of {INSTALLED}"
)

KERNEL = Kernel(
    name="gradient_kernel", step="gradient", gpu=90, dtype="bfloat16", width=128, block=(128, 64), warps=8,
    registers=122, stack=0, spills=0, shared=84_000, tensor_memory=0, multiplies=True, tensor_cores=24,
    loop=Loop(8.5, 1.0, 2.0), launch=1, main=True,
)  # fmt: skip

LISTING = """
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   STL [R1], R2 ;
.L_x_0:
        /*0020*/              @!P1 LDG.E R4, [R2.64] ;
.L_x_1:
        /*0030*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0040*/                   HMMA.16816.F32.BF16 R12, R4, R7, R12 ;
        /*0050*/                   MUFU.EX2 R8, R8 ;
        /*0060*/               @P0 BRA `(.L_x_1) ;
        /*0070*/              @!P2 BRA `(.L_x_0) ;
        /*0080*/                   BRA `(.L_x_2) ;
.L_x_2:
        /*0090*/                   EXIT ;
"""


def test_the_innermost_loop_is_counted_for_each_pair():
    instructions, loops = compiled.parse(LISTING)
    assert instructions[:3] == ["LDC R1, c[0x0][0x28]", "STL [R1], R2", "LDG.E R4, [R2.64]"]
    assert [instructions[part][0][:4] for part in loops] == ["HMMA"]
    # one warp, 16 x 8 pairs: 4 for each thread; each HMMA is a product of 16 x 8 pairs over 16 columns
    assert compiled.count(instructions[loops[0]], (16, 8), 1, 16) == Loop(4 / 4, 1 / 4, 2.0)
    assert compiled.count(instructions[loops[0]], (16, 8), 1, 16, slices=2) == Loop(4 / 2, 1 / 2, 4.0)
    assert compiled.count(instructions[:3], (16, 8), 1, 16) is None


def test_products_whose_shape_is_unknown_are_not_counted():
    assert compiled.multiplications("HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24") == 16 * 128 * 16
    assert compiled.multiplications("HMMA.1688.F32.TF32 R4, R4, R6, R4") == 16 * 8 * 8
    assert (
        compiled.count(["UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR8]", "MUFU.EX2 R1, R1"], (16, 8), 4, 16).products
        is None
    )


@pytest.mark.parametrize(
    ("registers", "warps", "shared", "tensor_memory", "programs"),
    [
        (122, 8, 84_000, 0, 2),  # 128 registers of 256 threads: half of an SM
        (217, 8, 84_000, 0, 1),
        (168, 4, 100_000, 0, 2),  # 3 by registers, 2 by shared memory
        (32, 4, 1_000, 0, 16),  # as many as warps
        (255, 4, 1_000, 0, 2),
        (122, 8, 84_000, 512, 1),  # all of the tensor memory
        (32, 1, 0, 0, 32),
    ],
)
def test_programs_of_an_sm(registers, warps, shared, tensor_memory, programs):
    kernel = replace(KERNEL, registers=registers, warps=warps, shared=shared, tensor_memory=tensor_memory)
    assert kernel.programs == programs


def test_what_falls_short_is_named():
    assert KERNEL.misses() == []
    short = replace(KERNEL, spills=3, tensor_cores=0, registers=217, loop=Loop(9.5, 1.5, 3.0))
    assert short.misses() == [
        "3 spills", "no tensor cores", "instructions 9.50, at most 9", "ex2 1.50, at most 1",
        "products 3.00, at most 2", "programs 1, at least 2",
    ]  # fmt: skip
    assert replace(short, main=False).misses() == ["3 spills", "no tensor cores"]
    assert replace(short, multiplies=False, spills=0, main=False).misses() == []


def test_the_main_launch_has_the_shortest_loop():
    kernels = [
        replace(KERNEL, launch=launch, loop=loop, main=False)
        for launch, loop in (
            (1, None),
            (2, Loop(30, 2, 2)),
            (3, Loop(12, 1, 2)),
            (3, Loop(8, 1, 2)),
            (4, Loop(9, 1, 2)),
        )
    ]
    assert [kernel.main for kernel in compiled.with_main(kernels)] == [False, False, True, True, False]
    assert not any(kernel.main for kernel in compiled.with_main(kernels[:1]))


def test_dtypes_with_the_same_figures_share_a_row():
    rows = compiled.table([KERNEL, replace(KERNEL, dtype="float16"), replace(KERNEL, width=256)])
    assert [row[2:4] for row in rows] == [["bfloat16, float16", "128"], ["bfloat16", "256"]]
    assert {len(row) for row in rows} == {len(compiled.HEADER) + 1}


#: Figures of the main loops by compute capability, width and pass, for embeddings of 16 bits and of 32: instructions,
#: `ex2` and products a pair at most, programs an SM at least. No main loop spills.
CEILINGS = {
    (80, 128, "forward"): (7.05, 1, 1, 2),
    (80, 128, "gradient"): (10.64, 1, 2, 2),
    (80, 256, "forward"): (11.47, 1, 1, 2),
    (80, 256, "gradient"): (19.12, 1, 2, 1),
    (80, 512, "forward"): (22.94, 1, 1, 1),
    (80, 512, "gradient"): (58.5, 2, 3, 1),
    (90, 128, "forward"): (3.67, 1, 1, 2),
    (90, 128, "gradient"): (5.62, 1, 2, 2),
    (90, 256, "forward"): (6.59, 1, 1, 2),
    (90, 256, "gradient"): (8.31, 1, 2, 1),
    (90, 512, "forward"): (9.78, 1, 1, 1),
    (90, 512, "gradient"): (28.88, 2, 3, 1),
    (100, 128, "forward"): (3.22, 1, 1, 2),
    (100, 128, "gradient"): (5.73, 1, 2, 2),
    (100, 256, "forward"): (6.66, 1, 1, 2),
    (100, 256, "gradient"): (8.59, 1, 2, 1),
    (100, 512, "forward"): (12.0, 1, 1, 1),
    (100, 512, "gradient"): (42.75, 1, 2, 1),
}
CEILINGS_FLOAT32 = {
    (90, 128, "forward"): (7.66, 1, 3, 2),
    (90, 128, "gradient"): (13.03, 1, 6, 2),
}
#: Spills of a kernel at most: some of the class region have a few.
SPILLS = {"bfloat16": 6, "float16": 6, "float32": 17}


def cases():
    """Return the cases; the first is quick, the others are slow. Embeddings of 16 bits have the same products."""
    every = [(gpu, width, dtype) for gpu in compiled.GPUS for width in compiled.WIDTHS for dtype in compiled.DTYPES]
    quick = (90, 128, "bfloat16")
    kept = [case for case in every if case[2] != "float16" or case[:2] == quick[:2]]
    return [pytest.param(*case, marks=[] if case == quick else pytest.mark.slow) for case in kept]


@compiles
@same_compiler
@pytest.mark.parametrize(("gpu", "width", "dtype"), cases())
def test_kernels_keep_their_ceilings(gpu, width, dtype):
    made = compiled.compiled(gpu, dtype, width)
    assert {kernel.step for kernel in made} == {"forward", "gradient"}
    for kernel in made:
        assert kernel.spills <= (0 if kernel.main and dtype != "float32" else SPILLS[dtype]), kernel
        assert kernel.tensor_cores > 0 or not kernel.multiplies, kernel
        assert kernel.programs > 0, kernel
    ceilings = CEILINGS_FLOAT32 if dtype == "float32" else CEILINGS
    for step in ("forward", "gradient") if (gpu, width, "forward") in ceilings else ():
        (main,) = [kernel for kernel in made if kernel.main and kernel.step == step]
        instructions, ex2, products, programs = ceilings[gpu, width, step]
        for figure, limit in zip(main.loop, (instructions, ex2, products), strict=True):
            assert figure is None or round(figure, 2) <= limit, main
        assert main.programs >= programs, main
        assert main.misses() == [] or dtype == "float32", main  # the targets of an H100


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("gpu", compiled.GPUS)
@pytest.mark.parametrize(
    ("width", "dtype", "options"),
    [
        (100, "float16", {"denominator": "one_positive", "summation": "in", "temperature": 0.01}),
        (768, "bfloat16", {"denominator": "one_positive"}),
        (768, "float32", {"denominator": "negatives"}),
        (64, "bfloat16", {"normalize": False}),
    ],
)
def test_all_options_compile_for_all_gpus(gpu, width, dtype, options):
    """Check what the interpreter cannot: types, shapes of products, shared memory, tensor cores."""
    for kernel in compiled.compiled(gpu, dtype, width, **options):
        assert kernel.shared <= compiled.GPUS[gpu].of_program, kernel
        assert kernel.tensor_cores > 0 or not kernel.multiplies, kernel
        assert kernel.stack <= 512, kernel


@compiles
@same_compiler
@pytest.mark.parametrize(
    ("width", "dtype"),
    [
        (128, "bfloat16"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [(256, "bfloat16"), (512, "float16"), (128, "float32")]
        ),
    ],
)
def test_products_on_an_h100_do_not_wait_for_each_other(tmp_path, width, dtype):
    """Ask the assembler, which puts a wait after each product where it cannot prove that they may overlap."""
    rows, labels = torch.randn(512, width, dtype=getattr(torch, dtype)).requires_grad_(), torch.arange(512) // 4
    with compiled.compile_only(90) as launches:
        problem = build_problem(check_batch(rows, labels, None), SupConOptions())
        torch.autograd.grad(triton.anchor_losses(problem).losses.sum(), rows)
    for launch in launches:
        path = tmp_path / "kernel.ptx"
        path.write_text(launch.kernel.asm["ptx"])
        notes = compiled.run(compiled.tool("ptxas"), "-arch=sm_90a", "-v", path, "-o", tmp_path / "kernel.cubin")
        assert "registers" in notes
        assert launch.arguments.get("CLASSES") or "serialized" not in notes, launch.name


@compiles
def test_spills_of_a_real_kernel_are_seen(tmp_path, monkeypatch):
    """Compile with so few registers that the compiler has to spill."""
    import triton

    run = triton.JITFunction.run
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.JITFunction, "run", lambda *args, **options: run(*args, **options, maxnreg=64))
    made = compiled.compiled(80, "bfloat16", 64)
    assert any("spills" in miss for kernel in made for miss in kernel.misses())
