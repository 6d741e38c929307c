"""PyTorch's settings of float32 products: an old one for all devices, and from PyTorch 2.9 on one for each."""

from contextlib import contextmanager

import torch

BY_DEVICE = hasattr(torch.backends.cuda.matmul, "fp32_precision")
FULL = "ieee" if BY_DEVICE else "highest"


def float32_products(device):
    """Return PyTorch's setting for products on a device, "cpu" or "cuda"."""
    return matmul(device).fp32_precision if BY_DEVICE else torch.get_float32_matmul_precision()


def matmul(device):
    """Return the object with the setting of a device."""
    return {"cpu": torch.backends.mkldnn, "cuda": torch.backends.cuda}[device].matmul


def all_settings():
    """Return all settings; the old one cannot be read where a device differs from it."""
    try:
        old = torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:
        old = None
    return old, *(float32_products(device) for device in ("cpu", "cuda"))


@contextmanager
def lower_precision(choose=lambda: torch.set_float32_matmul_precision("medium")):
    """Allow TF32 or bfloat16 in products of float32; check at the end that the settings are unchanged."""
    try:
        choose()
        users = all_settings()
        yield
        assert all_settings() == users
    finally:
        torch.set_float32_matmul_precision("highest")


def settings_at_products(monkeypatch):
    """Return a list, to which every product of matrices adds the setting of the CPU."""
    found = []

    def recorded(function):
        def run(*args, **options):
            found.append(float32_products("cpu"))
            return function(*args, **options)

        return run

    for name in ("__matmul__", "matmul", "mm", "addmm", "addmm_"):
        monkeypatch.setattr(torch.Tensor, name, recorded(getattr(torch.Tensor, name)))
    for name in ("matmul", "mm", "addmm"):
        monkeypatch.setattr(torch, name, recorded(getattr(torch, name)))
    return found
