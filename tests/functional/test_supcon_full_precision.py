"""Products of float32 rows stay float32, whatever the user allows elsewhere."""

import threading
from contextlib import nullcontext

import pytest
import torch
from helpers.float32_products import BY_DEVICE, FULL, float32_products, lower_precision, matmul, settings_at_products
from helpers.supcon_batches import BACKENDS, loss_and_gradient, random_rows

from pml_supcon.functional import supcon_loss
from pml_supcon.functional.gradient_shares import gradient_shares
from pml_supcon.functional.supcon.execution import full_precision
from pml_supcon.functional.supcon.tiled.passes import TilePasses

LABELS = torch.arange(40) % 5
compiler_keeps_settings = pytest.mark.skipif(
    not BY_DEVICE, reason="the compiler of PyTorch before 2.9 changes the user's setting itself"
)


@pytest.fixture
def settings(monkeypatch):
    return settings_at_products(monkeypatch)


@pytest.mark.parametrize("backend", BACKENDS)
def test_products_of_both_passes_are_float32(backend, settings):
    rows = random_rows(40, 8, dtype=torch.float32)
    right = loss_and_gradient(rows, LABELS, backend=backend)
    settings.clear()
    with lower_precision():
        leaf = rows.clone().requires_grad_()
        losses, _ = supcon_loss(leaf, LABELS, backend=backend)
        forward = len(settings)
        (gradient,) = torch.autograd.grad(losses.sum() / len(losses), leaf)
    assert 0 < forward < len(settings)
    assert set(settings) == {FULL}
    for ours, expected in zip((losses, gradient), right, strict=True):
        torch.testing.assert_close(ours, expected)


def test_products_of_gradient_shares_are_float32(settings):
    with lower_precision():
        gradient_shares(random_rows(40, 8, dtype=torch.float32), LABELS)
    assert set(settings) == {FULL}


@compiler_keeps_settings
def test_products_of_a_compiled_step_are_float32(monkeypatch):
    """Compile without a graph break; the operator of `tiled` changes the setting when it runs."""
    torch.compiler.reset()
    inside, negatives = [], TilePasses.log_negatives

    def recorded(passes, tiles):
        inside.append(float32_products("cpu"))
        return negatives(passes, tiles)

    monkeypatch.setattr(TilePasses, "log_negatives", recorded)

    def step(rows):
        return supcon_loss(rows, LABELS, backend="tiled").mean()

    with lower_precision():
        torch.compile(step, fullgraph=True, backend="aot_eager")(random_rows(40, 8, dtype=torch.float32))
    assert inside == [FULL]


@compiler_keeps_settings
def test_a_compiled_reference_leaves_the_setting_alone():
    torch.compiler.reset()

    def step(rows):
        return supcon_loss(rows, LABELS, backend="reference").mean()

    rows = random_rows(40, 8, dtype=torch.float32)
    with lower_precision():
        found = torch.compile(step, fullgraph=True, backend="aot_eager")(rows)
    torch.testing.assert_close(found, step(rows), rtol=0.02, atol=0.02)


WAYS = {
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "allow_tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "cuda": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "cpu": lambda: setattr(matmul("cpu"), "fp32_precision", "bf16"),
}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("way", list(WAYS) if BY_DEVICE else ["medium", "high", "allow_tf32"])
@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_the_users_setting_comes_back(device, way, error):
    """Choose a lower precision in every way, for the same device and for the other one."""
    torch.set_float32_matmul_precision("highest")
    expected = pytest.raises(error) if error else nullcontext()
    with lower_precision(WAYS[way]), expected, full_precision(torch.device(device)):
        assert float32_products(device) == FULL
        if device == "cuda":
            assert not torch.backends.cuda.matmul.allow_tf32  # an error where the settings contradict each other
        if error:
            raise error


def test_the_last_of_several_threads_restores_the_setting():
    """Let two threads overlap: the one that entered first leaves first."""
    entered, left = threading.Event(), threading.Event()
    found = []

    def second():
        with full_precision(torch.device("cpu")):
            entered.set()
            left.wait(timeout=30)
            found.append(float32_products("cpu"))

    with lower_precision():
        thread = threading.Thread(target=second)
        with full_precision(torch.device("cpu")):
            thread.start()
            assert entered.wait(timeout=30)
        left.set()
        thread.join()
    assert found == [FULL]


def test_other_devices_have_no_setting():
    with lower_precision(), full_precision(torch.device("meta")):
        assert float32_products("cpu") != FULL
