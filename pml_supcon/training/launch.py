"""The launch of the three programs: the accelerator, and the launches that the engine rejects."""

from datetime import timedelta

from accelerate import Accelerator, DistributedType, InitProcessGroupKwargs

#: The time that processes wait in a collective, while the main one downloads data or computes scores.
GROUP_TIMEOUT = timedelta(days=1)


def make_accelerator(mixed_precision: str | None) -> Accelerator:
    """Create the accelerator and reject launches that the engine does not support; see ``check_launch``."""
    waiting = InitProcessGroupKwargs(timeout=GROUP_TIMEOUT)
    accelerator = Accelerator(mixed_precision=mixed_precision, kwargs_handlers=[waiting])
    check_launch(accelerator)
    return accelerator


def check_launch(accelerator: Accelerator) -> None:
    """Reject FSDP, DeepSpeed, gradient accumulation, and a precision that the device does not have.

    Raises:
        ValueError: If the launcher asks for one of them.
    """
    supported = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in supported:
        raise ValueError(f"Expected data-parallel processes, but got {accelerator.distributed_type.value}")
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            f"Expected no gradient accumulation (--chunk_size does that, exactly), but got "
            f"{accelerator.gradient_accumulation_steps} steps"
        )
    precision, device = accelerator.mixed_precision, accelerator.device.type
    if precision == "fp8" or (precision == "fp16" and not accelerator.native_amp):  # they would change nothing
        possible = "no or bf16" if device == "cpu" else "no, bf16 or fp16"
        raise ValueError(
            f"Expected --mixed_precision (or the launcher's) to be {possible} on this device, {device}, but got "
            f"{precision}"
        )
