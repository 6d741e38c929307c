"""Measure the rounding errors of every backend and dtype, on random rows and on tight classes.

    python benchmarks/precision.py [--quick]

The right values are the definition's in float64 on the same rows, which are rounded to the dtype; temperature 0.1.

- Random rows: 40 batches of 50 rows (4 for `triton`), every summation and denominator. The largest error of a loss,
  relative if above 1, and the largest error of a row's gradient over the length of the largest row.
- Tight classes, as training makes them: 192 rows around 6 centres of length 1, with noise whose length is the spread.
  The relative error of the mean loss, and 1 minus the cosine of the gradient and the right one. The gradient is then a
  small difference of large terms, which rounded products can drown.

Without a GPU the kernels run in Triton's interpreter. Takes some minutes.
"""

import argparse
import os
from collections.abc import Iterable, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

if __name__ == "__main__" and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read by Triton at its import

from tables import publish

from pml_supcon.functional import supcon_loss
from pml_supcon.functional.supcon import triton
from pml_supcon.functional.supcon.backends import BACKENDS

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OPTIONS = tuple(product(("out", "in"), ("all", "one_positive", "negatives")))
SPREADS = (2.0, 0.5, 0.2, 0.1, 0.03)
HEADER = ["embeddings, backend", "random rows", *(f"spread {spread:g}" for spread in SPREADS)]


def main(arguments: Sequence[str] | None = None) -> list[list[str]]:
    """Measure all backends in all dtypes, print the table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one batch, and no record")
    quick = parser.parse_args(arguments).quick
    rows = []
    for dtype, backend in product(DTYPES, runnable()):
        if backend == "triton" and dtype not in triton.DTYPES:
            continue
        number = 1 if quick else 4 if backend == "triton" else 40
        errors = [random_errors(backend, dtype, number), *(tight_errors(backend, dtype, spread) for spread in SPREADS)]
        name = f"{str(dtype).removeprefix('torch.')}, `{backend}`"
        rows.append([name, *(f"{loss:.0e} / {gradient:.0e}" for loss, gradient in errors)])
        print(rows[-1], flush=True)
    publish("precision", HEADER, rows, quick=quick)
    return rows


def runnable() -> Iterable[str]:
    """Return the names of the backends that run here."""
    without = () if device("triton") == "cuda" or (triton.INSTALLED and triton.INTERPRETED) else ("triton",)
    return [name for name in BACKENDS if name not in without]


def device(backend: str) -> str:
    """Return the device that a backend is measured on."""
    return "cuda" if backend == "triton" and torch.cuda.is_available() and not triton.INTERPRETED else "cpu"


def random_errors(backend: str, dtype: torch.dtype, batches: int) -> tuple[float, float]:
    """Return the largest errors of losses and of gradients over some batches of random rows, with all options."""
    generator = torch.Generator().manual_seed(0)
    losses, gradients = [0.0], [0.0]
    for _, (summation, denominator) in product(range(batches), OPTIONS):
        rows = torch.randn(50, 24, generator=generator, dtype=torch.float64).to(dtype)
        labels = torch.randint(0, 6, (25,), generator=generator).repeat(2)
        upstream = torch.randn(50, generator=generator, dtype=torch.float64)
        options = {"summation": summation, "denominator": denominator}
        right, right_gradient = solved(rows.double(), labels, upstream, backend="reference", **options)
        ours, gradient = solved(rows, labels, upstream, backend=backend, **options)
        losses.append(((ours - right).abs() / right.abs().clamp(min=1)).max().item())
        gradients.append(((gradient - right_gradient).norm(dim=1).max() / right_gradient.norm(dim=1).max()).item())
    return max(losses), max(gradients)


def tight_errors(backend: str, dtype: torch.dtype, spread: float) -> tuple[float, float]:
    """Return the relative error of the mean loss, and 1 minus the cosine of the gradient and the right one."""
    generator = torch.Generator().manual_seed(0)
    # z = centre + spread * noise, (192, 64), with centres (6, 64) and noise of length about 1
    labels = torch.arange(192) % 6
    centres = F.normalize(torch.randn(6, 64, generator=generator, dtype=torch.float64), dim=1)
    noise = torch.randn(192, 64, generator=generator, dtype=torch.float64) / 64**0.5
    rows = (centres[labels] + spread * noise).to(dtype)
    upstream = torch.full((192,), 1 / 192, dtype=torch.float64)
    right, right_gradient = solved(rows.double(), labels, upstream, backend="reference")
    ours, gradient = solved(rows, labels, upstream, backend=backend)
    cosine = F.cosine_similarity(gradient.flatten(), right_gradient.flatten(), dim=0)
    return ((ours.mean() - right.mean()) / right.mean()).abs().item(), abs(1 - cosine.item())


def solved(rows: Tensor, labels: Tensor, upstream: Tensor, *, backend: str, **options: str) -> tuple[Tensor, Tensor]:
    """Return the losses ``(N,)`` and the gradient ``(N, D)`` under an upstream gradient, in float64 on the CPU."""
    where = device(backend)
    leaf = rows.to(where).requires_grad_()
    losses = supcon_loss(leaf, labels.to(where), backend=backend, **options).losses  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(losses, leaf, upstream.to(losses))
    return losses.detach().cpu().double(), gradient.cpu().double()


if __name__ == "__main__":
    main()
