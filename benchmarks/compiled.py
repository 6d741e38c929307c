"""Compile the Triton kernels for GPUs that are not there, and count what the compiler made of them.

    python benchmarks/compiled.py [--quick] [--gpus 80 90 100] [--dtypes bfloat16 float32] [--widths 128 256] [--all]

A stand-in for Triton's driver takes the launches of a loss and of its gradient: every kernel is compiled for a compute
capability by Triton's own `ptxas`, and none runs. The table has one line for a kernel in its first block shape, or with
`--all`, which only prints, in every candidate:

- registers of a thread, bytes of stack, instructions on local memory (spills), shared memory;
- programs an SM: how many fit at once, by registers, shared memory, tensor memory and warps;
- tensor-core instructions;
- in the main loop, which goes over the tiles without equal labels: instructions, `ex2` and products for each pair of
  rows. An instruction of a warp counts for its 32 lanes. A product is D multiplications: the forward pass needs one a
  pair, the gradient two; more are computed twice.

The main loop has no count where its products are split over the columns, and no products on sm_100, whose instructions
do not name their shape. Needs Linux and the package triton. Takes some minutes.
"""

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from tables import publish, shown

from pml_supcon.functional.supcon import triton as backend
from pml_supcon.functional.supcon.options import SupConOptions
from pml_supcon.functional.supcon.problem import build_problem, check_batch

#: Rows of the batch: as many as a large batch has, for the kernels that it takes.
ROWS = 16384
DTYPES, WIDTHS = ["bfloat16", "float16", "float32"], [128, 256, 512]
HEADER = [
    "GPU", "embeddings", "D", "tile", "registers", "stack, bytes", "spills", "shared, KB", "programs an SM",
    "tensor-core instructions", "instructions a pair", "`ex2` a pair", "products a pair", "falls short",
]  # fmt: skip
TOOLS = ("ptxas", "cuobjdump", "nvdisasm")


class Multiprocessor(NamedTuple):
    """A GPU's name, and the shared memory of one SM and of one program on it, in bytes."""

    gpu: str
    shared: int
    of_program: int


#: By compute capability.
GPUS = {
    80: Multiprocessor("A100, sm_80", 164 << 10, 163 << 10),
    90: Multiprocessor("H100, sm_90", 228 << 10, 227 << 10),
    100: Multiprocessor("B200, sm_100", 228 << 10, 227 << 10),
}
WARPS = 64  # of an SM
PROGRAMS = 32  # of an SM at most
TENSOR_MEMORY = 512  # columns of an SM of sm_100
REGISTERS = 65536  # of an SM; a warp takes them in units of 256
RESERVED = 1024  # bytes of shared memory that the system adds to each program


class Target(NamedTuple):
    """The most instructions, `ex2` and products of rows for each pair, and the fewest programs on a multiprocessor."""

    instructions: float
    ex2: float
    products: float
    programs: int


#: The targets of the main loops, by compute capability, width and pass, for embeddings of 16 bits.
TARGETS = {
    (90, 128, "forward"): Target(5, 1, 1, 2),
    (90, 128, "gradient"): Target(9, 1, 2, 2),
    (90, 256, "gradient"): Target(11, 1, 2, 1),
}


class Loop(NamedTuple):
    """Counts for each pair of the tile of a loop; `products` is None where the instructions do not name their shape."""

    instructions: float
    ex2: float
    products: float | None


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A compiled kernel.

    Attributes:
        step: "forward" or "gradient", the pass that launches it.
        block: rows and columns of a tile.
        registers: of a thread.
        stack: bytes of a thread.
        spills: instructions that read or write local memory.
        shared: bytes of a program.
        tensor_memory: columns of a program, 0 before sm_100.
        multiplies: True for a kernel with a matrix product.
        tensor_cores: instructions of tensor cores.
        loop: the loop with the fewest instructions among those that multiply and take exponentials, or None.
        launch: number of the launch; all candidates of the block shape have the same.
        main: True for the launch with the shortest such loop of its pass.
    """

    name: str
    step: str
    gpu: int
    dtype: str
    width: int
    block: tuple[int, int]
    warps: int
    registers: int
    stack: int
    spills: int
    shared: int
    tensor_memory: int
    multiplies: bool
    tensor_cores: int
    loop: Loop | None
    launch: int
    main: bool = False

    @property
    def programs(self) -> int:
        """The number of programs that fit on one SM."""
        # warps take registers in units of 256, in groups of 4 warps, one for each quarter of the SM
        by_registers = REGISTERS // (-(-self.registers // 8) * 256) // 4 * 4 // self.warps
        by_memory = GPUS[self.gpu].shared // (self.shared + RESERVED)
        by_tensor_memory = TENSOR_MEMORY // self.tensor_memory if self.tensor_memory else PROGRAMS
        return min(by_registers, WARPS // self.warps, by_memory, by_tensor_memory, PROGRAMS)

    @property
    def target(self) -> Target | None:
        """The target of a main loop, None for all other kernels."""
        return TARGETS.get((self.gpu, self.width, self.step)) if self.main and self.dtype != "float32" else None

    def misses(self) -> list[str]:
        """Return what falls short: spills, products without tensor cores, and figures that miss the target."""
        found = [f"{self.spills} spills"] if self.spills else []
        found += ["no tensor cores"] if self.multiplies and not self.tensor_cores else []
        if (aim := self.target) is not None and self.loop is not None:
            limits = {name: getattr(aim, name) for name in Loop._fields}
            found += [
                f"{name} {value:.2f}, at most {limit:g}"
                for name, limit in limits.items()
                if (value := getattr(self.loop, name)) is not None and round(value, 2) > limit
            ]
            found += [f"programs {self.programs}, at least {aim.programs}"] if self.programs < aim.programs else []
        return found


def main(arguments: Sequence[str] | None = None) -> list[Kernel]:
    """Compile all cases, print the table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="sm_90, bfloat16, D = 128 only, and no record")
    parser.add_argument("--gpus", type=int, nargs="+", choices=GPUS, default=list(GPUS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--all", action="store_true", help="every candidate of the block shapes, and no record")
    asked = parser.parse_args(arguments)
    if reason := obstacle():
        parser.error(f"cannot compile kernels: {reason}")
    whole = [asked.gpus, asked.widths, asked.dtypes] == [list(GPUS), WIDTHS, DTYPES] and not (asked.all or asked.quick)
    cases = [(90, 128, "bfloat16")] if asked.quick else itertools.product(asked.gpus, asked.widths, asked.dtypes)
    made = []
    for gpu, width, dtype in cases:
        made += compiled(gpu, dtype, width, every=asked.all)
        print(f"{gpu=} {width=} {dtype=}: {len(made)} kernels", file=sys.stderr, flush=True)
    import triton

    header = [f"kernel, compiled by Triton {triton.__version__}", *HEADER]
    publish("compiled", header, table(made), quick=not whole)
    return made


def table(kernels: Sequence[Kernel]) -> list[list[str]]:
    """Return the rows of the table; kernels that differ in the dtype of the embeddings alone share one."""
    dtypes: dict[tuple[str, ...], list[str]] = {}
    for kernel in kernels:
        loop = kernel.loop or (None, None, None)
        cells = (
            f"`{kernel.name}`" + (", main" if kernel.main else ""),
            GPUS[kernel.gpu].gpu,
            f"{kernel.width}",
            "{} x {}, {} warps".format(*kernel.block, kernel.warps),
            *map(str, (kernel.registers, kernel.stack, kernel.spills)),
            f"{kernel.shared / 1000:.0f}",
            *map(str, (kernel.programs, kernel.tensor_cores)),
            *map(shown, loop),
            "; ".join(kernel.misses()) or "-",
        )
        dtypes.setdefault(cells, []).append(kernel.dtype)
    return [[*cells[:2], ", ".join(dict.fromkeys(names)), *cells[2:]] for cells, names in dtypes.items()]


def obstacle() -> str | None:
    """Return the reason why kernels cannot be compiled here, or None."""
    if not backend.INSTALLED:
        return "the package triton is not installed"
    if backend.INTERPRETED:
        return "TRITON_INTERPRET=1 interprets kernels"
    missing = [name for name in TOOLS if not tool(name).exists()]
    return f"the installed triton has no {', '.join(missing)}" if missing else None


def tool(name: str) -> Path:
    """Return the path of a tool of CUDA that comes with Triton."""
    import triton

    return Path(triton.__file__).parent / "backends/nvidia/bin" / name


def compiled(gpu: int, dtype: str, width: int, *, every: bool = False, **options: Any) -> list[Kernel]:
    """Compile the kernels of a loss and of its gradient.

    Args:
        gpu: compute capability times 10, a key of `GPUS`.
        dtype: dtype of the embeddings.
        width: their number of columns.
        every: compile every candidate of the block shape; the first alone by default.
        options: options of the loss.
    """
    rows = torch.randn(ROWS, width).to(getattr(torch, dtype)).requires_grad_()
    batch = check_batch(rows, torch.arange(ROWS // 2).repeat(2) // 4, None)
    problem = build_problem(batch, SupConOptions(**options))
    with compile_only(gpu, every=every) as launches:
        loss = backend.mean_loss(problem)
        forward = len(launches)
        torch.autograd.grad(loss, rows)
    made: dict[str, list[Kernel]] = {"forward": [], "gradient": []}
    for number, launch in enumerate(launches):
        step = "forward" if number < forward else "gradient"
        made[step] += [figures(launch, step=step, gpu=gpu, dtype=dtype, width=width)]
    return [kernel for step in made.values() for kernel in with_main(step)]


class Launch(NamedTuple):
    """A compiled kernel, its arguments, and the number of its launch."""

    name: str
    kernel: Any
    arguments: dict[str, Any]
    number: int


@contextmanager
def compile_only(gpu: int, *, every: bool = False) -> Iterator[list[Launch]]:
    """Compile kernels where they are launched, and list them."""
    import triton
    from triton.backends.compiler import GPUTarget

    launches: list[Launch] = []
    numbers = itertools.count()
    tuned: list[int] = []  # the number of the launch that is tuned
    compile_kernel = triton.JITFunction.run

    def launch(function: Any, *args: Any, grid: Any, warmup: bool, **arguments: Any) -> Any:
        kernel = compile_kernel(function, *args, grid=grid, warmup=True, **arguments)
        launches.append(Launch(function.__name__, kernel, arguments, tuned[0] if tuned else next(numbers)))
        return kernel

    def tune(tuner: Any, *args: Any, **arguments: Any) -> None:
        tuner.nargs = {}
        named = {name: value for name, value in arguments.items() if name not in ("grid", "warmup")}
        tuned.append(next(numbers))
        for config in tuner.prune_configs(named):
            tuner.fn.run(*args, **arguments, **config.all_kwargs())
        tuned.clear()

    device = {"max_shared_mem": GPUS[gpu].of_program, "multiprocessor_count": 132, "max_num_regs": REGISTERS}
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", gpu, 32),
        get_current_device=lambda: -gpu,  # the key of Triton's cache of kernels: no real device has it
        get_current_stream=lambda device: 0,
        get_benchmarker=lambda: None,
        utils=SimpleNamespace(get_device_properties=lambda _: device),
    )
    holder = triton.runtime.driver
    with ExitStack() as stack:
        # deterministic algorithms take the first block shape
        stack.enter_context(mock.patch("torch.are_deterministic_algorithms_enabled", return_value=not every))
        stack.enter_context(mock.patch.object(holder, "_active" if hasattr(holder, "_active") else "active", driver))
        stack.enter_context(mock.patch.object(triton.runtime.Autotuner, "run", tune))
        stack.enter_context(mock.patch.object(triton.JITFunction, "run", launch))
        yield launches


def figures(launch: Launch, **case: Any) -> Kernel:
    """Return the figures of a compiled kernel, from its machine code."""
    name, kernel, arguments, number = launch
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        usage = run(tool("cuobjdump"), "-res-usage", path)
        code = run(tool("nvdisasm"), "-c", path)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    threads = re.search(r"\.reqntid (\d+)", kernel.asm["ptx"])
    assert found is not None, usage
    assert threads is not None, "the kernel has no number of threads"
    warps = int(threads[1]) // 32
    instructions, loops = parse(code)
    block = (arguments["BLOCK_M"], arguments.get("BLOCK_N", 1))
    # programs that each compute a slice of a gradient's columns all go over the same pairs
    width = case["width"]
    slices = -(-width // arguments.get("BLOCK_D", width))
    counted = [count(instructions[part], block, warps, width, slices) for part in loops]
    return Kernel(
        name=name,
        **case,
        block=block,
        warps=warps,
        registers=int(found[1]),
        stack=int(found[2]),
        spills=sum(re.match(r"(STL|LDL)\b", each) is not None for each in instructions),
        shared=kernel.metadata.shared,
        tensor_memory=getattr(kernel.metadata, "tmem_size", None) or 0,
        multiplies="tt.dot" in kernel.asm.get("ttir", "") or any(map(is_product, instructions)),
        tensor_cores=sum(map(is_product, instructions)),
        loop=min((loop for loop in counted if loop is not None), default=None),
        launch=number,
    )


def run(program: Path, *arguments: str | Path) -> str:
    """Return the output of a tool."""
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def parse(code: str) -> tuple[list[str], list[slice]]:
    """Return the instructions of a listing without their predicates, and the loops without loops inside."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@\S+\s+)?(.*?)\s*;", line):
            instructions.append(re.sub(r"^(UPT|PT|!?U?P\d),?\s+", "", found[1]))
    # a branch to an earlier label closes a loop
    ends = [(re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", each), end) for end, each in enumerate(instructions)]
    spans = [(labels[to[1]], end) for to, end in ends if to is not None and labels.get(to[1], end + 1) <= end]
    inner = [a for a in spans if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    return instructions, [slice(start, end + 1) for start, end in inner]


def is_product(instruction: str) -> bool:
    """Return True for an instruction of tensor cores: of sm_80, sm_90 and sm_100."""
    return re.match(r"(HMMA|HGMMA|UTC\w*MMA)\b", instruction) is not None


def multiplications(instruction: str) -> int | None:
    """Return the multiplications of a tensor-core instruction of one warp; None where it does not name its shape."""
    if found := re.match(r"HMMA\.(16)(8)(8|16)\b", instruction):
        m, n, k = map(int, found.groups())
    elif found := re.match(r"HGMMA\.(64)x(\d+)x(\d+)", instruction):
        m, n, k = map(int, found.groups())
        m //= 4  # four warps share the rows
    else:
        return None
    return m * n * k


def count(instructions: Sequence[str], block: tuple[int, int], warps: int, width: int, slices: int = 1) -> Loop | None:
    """Return the counts of a loop for each pair of its tile; None if it has no products or no exponentials.

    Args:
        instructions: of the loop.
        block: rows and columns of a tile.
        warps: warps of a program.
        width: columns of the embeddings.
        slices: programs that go over the same tile.
    """
    products = [multiplications(each) for each in instructions if is_product(each)]
    ex2 = sum(each.startswith("MUFU.EX2") for each in instructions)
    if not products or not ex2:
        return None
    pairs = block[0] * block[1] / slices
    lanes = 32 * warps
    known = [each for each in products if each is not None]
    done = sum(known) * warps / (pairs * width) if len(known) == len(products) else None
    return Loop(len(instructions) * lanes / pairs, ex2 * lanes / pairs, done)


def with_main(kernels: Sequence[Kernel]) -> list[Kernel]:
    """Mark the launch whose loop has the fewest instructions a pair."""
    looped = [kernel for kernel in kernels if kernel.loop is not None]
    main = min(looped, key=lambda kernel: kernel.loop or (), default=None)
    return [replace(kernel, main=main is not None and kernel.launch == main.launch) for kernel in kernels]


if __name__ == "__main__":
    main()
