"""Fused CUDA kernels, written in Triton: exact in linear memory, each tile of similarities lives and dies on the chip.

Products run in the dtype of the embeddings given; sums, logarithms, losses and gradients are float32. One block shape
gives the same bits in every run; Triton chooses the shape by timing, unless `torch.use_deterministic_algorithms` is on.
`operators` lays a problem out and launches, `forward` and `backward` hold the kernels, `weights` and `pieces` what they
are made of, `blocks` their shapes.
"""

import os
from importlib.util import find_spec

import torch

from pml_supcon.functional.supcon.problem import AnchorLosses, Problem

#: What the products may run in.
DTYPES = (torch.float16, torch.bfloat16, torch.float32)

INSTALLED = find_spec("triton") is not None

#: Triton's interpreter runs kernels on any device, slowly, to debug them. Triton looks once, when it is imported.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def refusal(problem: Problem) -> str | None:
    """Why this backend cannot solve the problem, or None."""
    device = problem.anchors.device
    if problem.similarity is not None:
        return "a similarity other than the dot product needs the whole matrix"
    if problem.pairs is not None:
        return "indices_tuple lists pairs, which it does not read"
    if problem.transformed is not None:
        return problem.transformed
    if problem.input_dtype not in DTYPES:
        return f"it computes in float32 at most, and the embeddings are {problem.input_dtype}"
    if not INSTALLED:
        return "the package triton is not installed"
    if INTERPRETED:
        return None
    if device.type != "cuda" or torch.version.hip is not None:
        return f"its kernels run on NVIDIA GPUs, and the embeddings are on {device}"
    if torch.cuda.get_device_properties(device).major < 8:
        return "its kernels need compute capability 8.0, and the GPU has less"
    return None


def anchor_losses(problem: Problem) -> AnchorLosses:
    """Per-anchor losses in `O(N D)` extra memory; differentiable once."""
    from pml_supcon.functional.supcon.triton.operators import solve  # not before Triton is known to be there

    return solve(problem)
