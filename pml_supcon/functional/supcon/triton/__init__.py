"""The ``triton`` backend: fused CUDA kernels, exact in linear memory.

Tiles of similarities are never written to global memory. ``products_dtype`` is the dtype of products; sums, logarithms,
losses and gradients are float32. Results are bit-identical between runs with the same block shape; Triton chooses the
shape by timing, unless ``torch.use_deterministic_algorithms`` is on.

- ``launcher``: the test that Triton can launch kernels;
- ``operators``: the operator; sorts the labels of a problem;
- ``launch``: kernel launches;
- ``prepare``: the kernel that normalises, sorts and rounds rows;
- ``forward``, ``backward``: the kernels over pairs;
- ``weights``, ``primitives``: their building blocks;
- ``blocks``: their block shapes.
"""

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from pml_supcon.functional.supcon.problem import AnchorLosses, Problem
from pml_supcon.functional.supcon.triton import launcher

#: The dtypes that products can run in.
DTYPES = (torch.float16, torch.bfloat16, torch.float32)

INSTALLED = find_spec("triton") is not None

#: Triton's interpreter runs kernels on any device, slowly, to debug them. Triton reads the variable at import.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def refusal(problem: Problem) -> str | None:
    """Return the reason why this backend cannot solve the problem, or None."""
    device = problem.device
    if problem.similarity is not None:
        return "a similarity other than the dot product needs the whole matrix"
    if problem.target is not None:
        return "it reads class labels, and not those of a target"
    if problem.class_balanced:
        return "its kernels do not balance classes"
    if problem.margin:
        return "its kernels have no margin"
    if problem.pairs is not None:
        return "indices_tuple lists pairs, which it does not read"
    if problem.transform_refusal is not None:
        return problem.transform_refusal
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
    fault: str | None = launcher.refusal(warn=problem.options.backend == "auto")
    return fault


def products_dtype(problem: Problem) -> torch.dtype:
    """Return the dtype of the products: for normalised rows float16 where 16 bits do, else one with their range."""
    products = problem.options.products
    if products == "float32" or (products == "auto" and problem.input_dtype == torch.float32):
        return torch.float32
    return torch.float16 if problem.options.normalize else problem.input_dtype


def anchor_losses(problem: Problem) -> AnchorLosses:
    """Return per-anchor losses in ``O(N D)`` extra memory; differentiable once."""
    from pml_supcon.functional.supcon.triton.operators import solve  # imports Triton, which is optional

    return solve(problem)


def mean_loss(problem: Problem) -> Tensor:
    """Return the mean of ``anchor_losses`` over valid anchors, 0 (with a graph) if there is none."""
    from pml_supcon.functional.supcon.triton.operators import solve_mean

    return solve_mean(problem)
