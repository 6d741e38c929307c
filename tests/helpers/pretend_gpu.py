"""A GPU that is not there: tensors with its device but without values; an error where the host would wait for it."""

from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 1)  # not the current device, which is 0
aten = torch.ops.aten


class WaitsForDeviceError(AssertionError):
    """The host would wait for the device."""


class _Watch(TorchDispatchMode):
    """Tensors on the CPU keep their values; operations on the GPU have shapes only, and may not make the host wait."""

    def __init__(self, fake):
        super().__init__()
        self.fake = fake

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        on_gpu = any(leaf.device.type == "cuda" for leaf in leaves)
        to = kwargs.get("device")
        if not on_gpu and (to is None or torch.device(to).type != "cuda"):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        self.check(func, args, kwargs, leaves, on_gpu)
        args, kwargs = tree_map(self.as_fake, (args, kwargs))
        return func(*args, **kwargs)

    def as_fake(self, leaf):
        real = isinstance(leaf, torch.Tensor) and not isinstance(leaf, FakeTensor)
        return self.fake.from_tensor(leaf) if real else leaf

    def check(self, func, args, kwargs, leaves, on_gpu):
        """Raise if the operation would make the host wait for the device."""
        devices = {leaf.device.type for leaf in leaves} | {torch.device(kwargs.get("device") or leaves[0].device).type}
        copy = func in (aten._to_copy.default, aten.copy_.default)
        if copy and devices == {"cpu", "cuda"}:
            blocking = not (kwargs.get("non_blocking") or (func is aten.copy_.default and args[2:] == (True,)))
            scalar = not on_gpu and args[0].ndim == 0 and func is aten.copy_.default
            if (blocking and not scalar) or (on_gpu and func is aten._to_copy.default):
                raise WaitsForDeviceError(f"{func} between devices waits for the copy")
        if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            indices = [index for index in args[1] if index is not None]
            if any(index.device.type == "cpu" for index in indices):
                raise WaitsForDeviceError(f"{func} copies its indices to the device")
            masked = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
            if masked and (func is aten.index.Tensor or args[2].numel() != 1):
                raise WaitsForDeviceError(f"{func} counts its mask")
        if func in (aten._local_scalar_dense.default, aten.nonzero.default, aten._unique2.default, aten.equal.default):
            raise WaitsForDeviceError(f"{func} reads values of the device")


def need_fake_tensors_on_a_gpu():
    """Skip the test where PyTorch asks the driver for a GPU also for tensors without values, as 2.7 does."""
    try:
        with FakeTensorMode():
            torch.empty(2, 2, device=GPU)[0].clone()
    except RuntimeError as error:
        pytest.skip(f"needs fake tensors on a GPU that is not there: {str(error).splitlines()[0]}")


@contextmanager
def pretend_gpu(monkeypatch):
    """Run with tensors on ``GPU``; raise ``WaitsForDeviceError`` where the host would wait for them."""
    need_fake_tensors_on_a_gpu()
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, _Watch(fake):
        yield
