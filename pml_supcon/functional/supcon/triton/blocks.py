"""Block shapes of the kernels: the candidates for a width and dtype that fit a device.

The shapes are chosen for Hopper (by the compiler's report of registers and shared memory), with smaller ones for
devices with less shared memory. Triton times the candidates at the first call for each width and dtype, and keeps the
fastest.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton

from pml_supcon.functional.supcon.triton import INTERPRETED


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

#: For 16-bit products, on tensor cores.
NEGATIVES: Candidates = {
    128: [Blocks(64, 128, 4, 3), Blocks(128, 128, 8, 3), Blocks(64, 64, 4, 3)],
    256: [Blocks(128, 64, 8, 2), Blocks(64, 64, 8, 2), Blocks(64, 32, 4, 2)],
    512: [Blocks(64, 64, 8, 2), Blocks(64, 32, 4, 2), Blocks(32, 32, 4, 2)],
}
POSITIVES: Candidates = {256: [Blocks(64, 32, 4, 2)], 512: [Blocks(32, 32, 4, 2)]}
GRADIENT: Candidates = {
    128: [Blocks(128, 64, 8, 3), Blocks(128, 128, 8, 2), Blocks(64, 64, 4, 3)],
    256: [Blocks(64, 64, 8, 3), Blocks(64, 64, 8, 2), Blocks(64, 32, 4, 2)],
    512: [Blocks(64, 32, 8, 2), Blocks(64, 64, 8, 2), Blocks(32, 32, 8, 2)],
}

#: For exact float32 products, without tensor cores.
NEGATIVES_FLOAT32: Candidates = {512: [Blocks(64, 64, 8, 2), Blocks(64, 64, 4, 2), Blocks(32, 64, 4, 2)]}
POSITIVES_FLOAT32: Candidates = {512: [Blocks(32, 32, 4, 2)]}
GRADIENT_FLOAT32: Candidates = {256: [Blocks(64, 32, 8, 2), Blocks(32, 32, 8, 2)], 512: [Blocks(32, 32, 8, 2)]}

#: For Triton's interpreter, which is slow: one shape, small enough that few rows make several tiles.
INTERPRETER = {"BLOCK_M": lambda _: 32, "BLOCK_N": lambda _: 16}


def columns(width: int, itemsize: int) -> dict[str, int]:
    """Return ``BLOCK_K``, columns read at a time for similarities, and ``BLOCK_D``, columns of a gradient.

    16-bit rows of up to 512 columns stay on the chip as a whole. Wider rows are read in parts, and so are float32 rows:
    without tensor cores the compiler keeps all columns of one product in registers.
    """
    whole = max(16, 1 << (width - 1).bit_length())
    read = 16 if itemsize == 4 else whole if whole <= 512 else 64
    return {"BLOCK_K": read, "BLOCK_D": min(whole, 512)}


def tuned(spans: str, half: Candidates, single: Candidates) -> Callable[[Any], Any]:
    """Return a decorator that tunes a kernel's block shape, from candidates for 16-bit and for float32 rows.

    ``spans`` names the kernel's constant whose value selects the candidates, "BLOCK_K" or "BLOCK_D".
    """
    every = dict.fromkeys(blocks for table in (half, single) for row in table.values() for blocks in row)

    def fitting(configs: list[triton.Config], named: dict[str, Any], **options: Any) -> list[triton.Config]:
        """Return the candidates for a call; only the first under deterministic algorithms."""
        options = {**named, **options}
        x = options["x_ptr"]
        table = single if x.element_size() == 4 else half
        candidates = table[min(key for key in table if key >= options[spans])]
        available = triton.runtime.driver.active.utils.get_device_properties(x.device.index)["max_shared_mem"]
        fit = [b for b in candidates if shared_memory(b, options, x.element_size()) <= available] or candidates[-1:]
        return [blocks.config() for blocks in (fit[:1] if torch.are_deterministic_algorithms_enabled() else fit)]

    configs = [blocks.config() for blocks in every]
    decorate: Callable[[Any], Any] = (
        triton.heuristics(INTERPRETER)  # the tuner of Triton 3.3 needs a GPU
        if INTERPRETED
        else triton.autotune(configs, key=["WIDTH"], prune_configs_by={"early_config_prune": fitting})
    )
    return decorate


def shared_memory(blocks: Blocks, options: dict[str, int], itemsize: int) -> int:
    """Estimate the bytes of shared memory of a program with these blocks, to within some kilobytes."""
    read, owned = options["BLOCK_K"], options.get("BLOCK_D", 0)
    if options["WIDTH"] <= read:  # x stays on the chip, y streams
        return itemsize * read * (blocks.m + blocks.stages * blocks.n) + 4096
    return itemsize * (read * (blocks.stages + 1) * (blocks.m + blocks.n) + owned * blocks.stages * blocks.n) + 4096
