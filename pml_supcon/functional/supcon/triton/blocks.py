"""Shapes of the stored rows and of the kernels' tiles.

The shapes are chosen by the compiler's report of registers and shared memory (``benchmarks/compiled.py``), with smaller
ones for devices with less shared memory. Triton times the candidates of the kernels that go over most pairs, and keeps
the fastest for each width, dtype, and power of two of rows and of columns.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton

from pml_supcon.functional.supcon.triton import INTERPRETED
from pml_supcon.functional.supcon.triton.backward import gradient_kernel
from pml_supcon.functional.supcon.triton.forward import negatives_kernel

#: Rows of x and of y by which the class region is bounded: a multiple of every block.
GROUP = 32 if INTERPRETED else 128

#: With fewer pairs than this the first shape is taken, without a timing.
TIMED_PAIRS = 2**24


class Blocks(NamedTuple):
    """Rows of x and of y in a tile, warps, and how many tiles are in flight."""

    m: int
    n: int
    warps: int
    stages: int

    def config(self) -> triton.Config:
        """Return the shape as a configuration of Triton's autotuner."""
        return triton.Config({"BLOCK_M": self.m, "BLOCK_N": self.n}, num_warps=self.warps, num_stages=self.stages)


#: Candidates by the number of columns that a block spans (the next larger key), the most promising first.
Candidates = dict[int, list[Blocks]]

#: For rows of one part of 16 bits: tiles without equal labels, then tiles of the class region.
NEGATIVES: Candidates = {
    128: [Blocks(128, 128, 8, 2), Blocks(64, 128, 4, 3), Blocks(64, 64, 4, 3)],
    256: [Blocks(64, 64, 4, 2), Blocks(128, 128, 8, 2), Blocks(128, 64, 8, 2), Blocks(64, 32, 4, 2)],
    512: [Blocks(64, 64, 4, 2), Blocks(64, 32, 4, 2), Blocks(32, 32, 4, 2)],
}
GRADIENT: Candidates = {
    128: [Blocks(64, 128, 4, 2), Blocks(128, 128, 8, 2), Blocks(128, 64, 8, 3), Blocks(64, 64, 4, 3)],
    256: [Blocks(128, 64, 8, 2), Blocks(64, 64, 4, 2), Blocks(64, 32, 4, 2)],
    512: [Blocks(64, 64, 8, 2), Blocks(64, 32, 8, 2), Blocks(32, 32, 8, 2)],
}
CLASSES: Candidates = {256: [Blocks(64, 32, 4, 2)], 512: [Blocks(64, 32, 4, 2), Blocks(32, 32, 4, 2)]}
CLASS_GRADIENT: Candidates = {128: [Blocks(64, 32, 4, 2), Blocks(32, 32, 4, 2), Blocks(32, 32, 4, 1)]}

#: The same for rows of two parts.
NEGATIVES_OF_PARTS: Candidates = {
    128: [Blocks(64, 64, 4, 2), Blocks(128, 128, 8, 2), Blocks(128, 64, 8, 2), Blocks(64, 32, 4, 2)],
    256: [Blocks(64, 64, 4, 2), Blocks(64, 32, 4, 2), Blocks(32, 32, 4, 2)],
}
GRADIENT_OF_PARTS: Candidates = {
    128: [Blocks(64, 64, 4, 2), Blocks(128, 64, 8, 2), Blocks(64, 32, 4, 2), Blocks(32, 32, 4, 2)],
}
CLASSES_OF_PARTS: Candidates = {256: [Blocks(64, 32, 4, 2), Blocks(32, 32, 4, 2)]}

#: The same for float32 rows, which are multiplied without tensor cores.
NEGATIVES_FLOAT32: Candidates = {512: [Blocks(64, 64, 8, 2), Blocks(64, 64, 4, 2), Blocks(32, 64, 4, 2)]}
GRADIENT_FLOAT32: Candidates = {256: [Blocks(64, 32, 8, 2), Blocks(32, 32, 8, 2)], 512: [Blocks(32, 32, 8, 2)]}
CLASSES_FLOAT32: Candidates = {512: [Blocks(32, 32, 4, 2)]}

#: By the kind of rows ("one", "parts", "float32"): tables of forward and gradient outside the class region, and in it.
TABLES = {
    "one": (NEGATIVES, GRADIENT, CLASSES, CLASS_GRADIENT),
    "parts": (NEGATIVES_OF_PARTS, GRADIENT_OF_PARTS, CLASSES_OF_PARTS, CLASS_GRADIENT),
    "float32": (NEGATIVES_FLOAT32, GRADIENT_FLOAT32, CLASSES_FLOAT32, GRADIENT_FLOAT32),
}

#: For Triton's interpreter, which is slow: one shape, small enough that few rows make several tiles.
INTERPRETER = Blocks(32, 16, 4, 1)


class Layout(NamedTuple):
    """The columns of stored rows: COLUMNS of the caller, padded to WIDTH, read by BLOCK_K and summed by BLOCK_D.

    16-bit rows of up to 512 columns (two parts: 256) stay on the chip as a whole. Wider rows are read in parts, and so
    are float32 rows: without tensor cores the compiler keeps all columns of one product in registers. The padding
    leaves no column to mask.
    """

    COLUMNS: int
    WIDTH: int
    PARTS: int
    BLOCK_K: int
    BLOCK_D: int

    @classmethod
    def of(cls, columns: int, parts: int, itemsize: int) -> "Layout":
        """Return the layout of rows with this number of columns."""
        whole = max(16, 1 << (columns - 1).bit_length())
        on_chip = 512 // parts
        width = whole if whole <= on_chip else -(-columns // on_chip) * on_chip
        read = 16 if itemsize == 4 else width if width <= on_chip else 64
        return cls(columns, width, parts, read, min(width, 128 if parts == 2 else on_chip))


def candidates(kernel: Any, arguments: dict[str, Any]) -> list[Blocks]:
    """Return the shapes of a kernel that fit the device, the most promising first."""
    rows, parts = arguments["x_ptr"], arguments["PARTS"]
    kind = "float32" if rows.element_size() == 4 else "parts" if parts == 2 else "one"
    gradient, classes = kernel is gradient_kernel, arguments.get("CLASSES", True)
    table = TABLES[kind][gradient + 2 * classes]
    spans = arguments["BLOCK_D" if gradient else "BLOCK_K"]
    shapes = table[min(key for key in table if key >= spans)]
    driver = triton.runtime.driver.active
    available: int = driver.utils.get_device_properties(rows.device.index)["max_shared_mem"]
    itemsize, copies = rows.element_size() * parts, int(driver.get_current_target().arch >= 100)
    return [b for b in shapes if shared_memory(b, arguments, itemsize, copies) <= available] or shapes[-1:]


def shared_memory(blocks: Blocks, arguments: dict[str, Any], itemsize: int, copies: int) -> int:
    """Estimate the bytes of shared memory of a program with these blocks, to within some kilobytes.

    From sm_100 on the compiler keeps ``copies = 1`` copy more of the factors of a gradient, and of rows of two parts.
    """
    read, owned = arguments["BLOCK_K"], arguments.get("BLOCK_D", 0)
    width, stages = arguments["WIDTH"], blocks.stages
    # x stays on the chip if it is read as a whole, and y streams; y streams once more if the gradient has other columns
    rows = read * (blocks.m + stages * blocks.n if width <= read else (stages + 1) * (blocks.m + blocks.n))
    again = stages if read < width or owned < width else 0
    copied = max(owned, (read + blocks.m) * (arguments["PARTS"] - 1)) * copies
    total: int = itemsize * (rows + (owned * again + copied) * blocks.n) + 4096
    return total


def fitting(_: list[triton.Config], named: dict[str, Any], **options: Any) -> list[triton.Config]:
    """Return the candidates of a call as configurations, for Triton's tuner."""
    arguments = {**named, **options}
    kernel = gradient_kernel if "BLOCK_D" in arguments else negatives_kernel
    return [blocks.config() for blocks in candidates(kernel, arguments)]


@lru_cache
def tuned(kernel: Any) -> Any:
    """Return the kernel with a tuner of its block shape; Triton 3.3 needs a GPU to create one."""
    every = dict.fromkeys(
        b for tables in TABLES.values() for table in tables[:2] for row in table.values() for b in row
    )
    key = ["WIDTH", "PARTS", "SHIFTED", "tuning_key"]
    prune = {"early_config_prune": fitting}
    return triton.autotune([blocks.config() for blocks in every], key=key, prune_configs_by=prune)(kernel)


#: The most columns of a gradient in a program of the class region, whose masks take registers.
CLASS_COLUMNS = 128


def run(kernel: Any, arguments: dict[str, Any], splits: int, slices: int = 1) -> None:
    """Run a kernel over tiles, with the arguments that it takes: blocks of rows, by splits of columns, by slices."""
    num_x, num_y = arguments["num_x"], arguments["num_y"]
    # the tuner's key beside the constants: powers of two of rows and of columns
    arguments["tuning_key"] = num_x.bit_length() * 64 + num_y.bit_length()
    arguments = {name: value for name, value in arguments.items() if name in kernel.arg_names}

    def grid(meta: dict[str, Any]) -> tuple[int, int, int]:
        return -(-num_x // meta["BLOCK_M"]), splits, slices

    if INTERPRETED:
        kernel[grid](**arguments, **INTERPRETER.config().kwargs)
        return
    # one shape, always the same, for deterministic algorithms, for few pairs, and for the class region
    timed = not (arguments.get("CLASSES", True) or torch.are_deterministic_algorithms_enabled())
    if timed and num_x * num_y >= TIMED_PAIRS:
        tuned(kernel)[grid](**arguments)
        return
    first = candidates(kernel, arguments)[0]
    kernel[grid](**arguments, **first.config().all_kwargs())
