"""Losses and gradients late in training, in every dtype and backend, against the definition in float64.

When classes are tight, a gradient is a small difference of large terms. `test_supcon_triton.py` also runs this file in
Triton's interpreter.
"""

from itertools import product
from pathlib import Path

import precision
import pytest
import torch
from helpers.supcon_batches import TOLERANCE
from precision import DTYPES, SPREADS, tight_errors

from pml_supcon.functional.supcon import triton
from pml_supcon.functional.supcon.backends import BACKENDS

PAGE = Path(__file__).parents[2] / "docs/functional/backends.md"

#: The largest relative error of the mean loss, and the largest value of 1 minus the cosine of the gradient.
LIMITS = {
    torch.float16: (1e-6, 1e-4),
    torch.bfloat16: (1e-6, 1e-4),
    torch.float32: (1e-6, 1e-6),
    torch.float64: (1e-12, 1e-12),
}
#: The same of `triton`, which multiplies normalised 16-bit rows in float16.
TRITON_LIMITS = {torch.float16: (1e-4, 2e-3), torch.bfloat16: (1e-4, 2e-3), torch.float32: (1e-6, 1e-6)}

# the interpreter computes in NumPy, which reports the infinities that the kernels mask
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def name_of(dtype):
    return str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("backend", BACKENDS)
def test_tight_classes(backend, dtype, spread):
    if backend not in precision.runnable():
        pytest.skip("needs a GPU, or Triton's interpreter, in which test_supcon_triton.py runs it")
    if backend == "triton" and dtype not in triton.DTYPES:
        pytest.skip("triton has no float64")
    loss, gradient = tight_errors(backend, dtype, spread)
    limits = (TRITON_LIMITS if backend == "triton" else LIMITS)[dtype]
    assert loss <= limits[0]
    assert gradient <= limits[1]


def test_products_of_bfloat16_are_seen(monkeypatch):
    """Multiply float32 rows, and the weights of the pairs, in bfloat16."""
    matmul = torch.Tensor.__matmul__

    def rounded(a, b):
        return matmul(*(x.bfloat16().float() if x.dtype == torch.float32 else x for x in (a, b)))

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    errors = [tight_errors("reference", torch.bfloat16, spread)[1] for spread in SPREADS]
    assert errors[0] < TRITON_LIMITS[torch.bfloat16][1] < errors[-1]


def test_the_page_shows_the_tolerances():
    text = PAGE.read_text()
    for dtype, of in TOLERANCE.items():
        (loss, gradient), (triton_loss, triton_gradient) = LIMITS[dtype], TRITON_LIMITS[dtype]
        cells = name_of(dtype), f"{of['losses']:g} / {of['gradients']:g}", f"{loss:g} / {gradient:g}"
        assert " | ".join(("", *cells, f"{triton_loss:g} / {triton_gradient:g}", "")).strip() in text


def test_the_script_measures_every_backend_and_dtype(monkeypatch, capsys):
    monkeypatch.setattr(precision, "SPREADS", SPREADS[:1])
    monkeypatch.setattr(precision, "DTYPES", DTYPES[:2])
    rows = precision.main(["--quick"])
    assert [row[0] for row in rows] == [
        f"{name_of(dtype)}, `{backend}`" for dtype, backend in product(DTYPES[:2], precision.runnable())
    ]
