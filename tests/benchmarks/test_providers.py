"""The providers of the benchmarks: they compute the same loss, and each option differs from the others."""

import math
import sys
from dataclasses import replace

import providers
import pytest
import torch
from providers import Case

CASE = Case(64, D=8, classes=5)


def loss_and_gradient(name, case):
    step = providers.make_step(name, case)
    loss = step.forward()
    return loss.item(), torch.cat([g.flatten() for g in step.backward(loss)])


@pytest.mark.parametrize(
    ("option", "peer"),
    [("L_out", "pml"), ("hardest 10%", "pml"), ("memory", "pml"), (providers.LABEL_FREE, "lightly")],
)
def test_providers_compute_the_same(option, peer):
    if peer == "lightly":
        pytest.importorskip("lightly.loss")
    case = Case(96, D=16, classes=7, option=option)
    loss, gradient = loss_and_gradient("pml_supcon/reference", case)
    for name in ("pml_supcon/auto", peer):
        other, other_gradient = loss_and_gradient(name, case)
        assert other == pytest.approx(loss, rel=1e-5)
        assert torch.allclose(other_gradient, gradient, atol=1e-6)
    if option == "L_out":
        assert loss_and_gradient("dense/eager", case)[0] == pytest.approx(loss, rel=1e-5)


def test_the_product_of_the_rate_has_its_size():
    assert providers.make_step("mm/48", CASE).forward().shape == (48, 48)


@pytest.mark.parametrize(("name", "option"), [("siglip-kernel", "L_out"), ("memeff", providers.LABEL_FREE)])
def test_cuda_libraries_are_skipped(name, option, monkeypatch):
    def reason(case):
        with pytest.raises(providers.SkippedError) as caught:
            providers.make_step(name, case)
        return str(caught.value)

    on_gpu = replace(CASE, device="cuda", option=option)
    monkeypatch.setitem(sys.modules, name.replace("-", "_"), None)
    assert reason(CASE) == f"{name} needs a CUDA device"
    assert reason(replace(on_gpu, option="L_in")) == f"{name} has no option 'L_in'"
    assert reason(on_gpu).startswith(f"{name} is not installed (")


@pytest.mark.parametrize("tile", [40, 1024])
def test_the_floor_does_the_products(tile):
    case = Case(64, D=8)
    z = torch.nn.functional.normalize(case.rows()[0].double(), dim=1) / math.sqrt(providers.TEMPERATURE)
    weights = (z @ z.T).exp()
    # The terms of a sum cancel, so its error is relative to their sizes: eps for each term, and for each digit of the
    # exponent, which is at most 1 / temperature and a sum of D terms itself.
    steps = case.N + case.D / providers.TEMPERATURE
    bound = steps * torch.finfo(torch.float32).eps * (weights @ z.abs())
    step = providers.make_step(f"floor/{tile}", case)
    for _ in range(2):
        assert ((step.forward() - weights @ z).abs() <= bound).all()


def test_each_option_has_a_loss_of_its_own():
    values = {
        option: loss_and_gradient("pml_supcon/auto", replace(CASE, option=option))[0]
        for option in [*providers.OPTIONS, *providers.PAST_ROWS, *providers.MINERS]
    }
    assert len(set(values.values())) == len(values)
    for option, value in values.items():
        assert value == pytest.approx(
            loss_and_gradient("pml_supcon/reference", replace(CASE, option=option))[0], rel=1e-4
        )
