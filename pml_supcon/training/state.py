"""Capture and restore the training state: weights, optimizer, schedule, sampler and random generators."""

import random
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from pml_supcon.training.checkpoint import Checkpoint, CheckpointError
from pml_supcon.training.stage import Stage


def modules_of(stage: Stage) -> dict[str, nn.Module]:
    """Return the modules of a stage by their names in a checkpoint."""
    parts = {"model": stage.model, "criterion": stage.criterion, "key_encoder": stage.key_encoder, "ema": stage.ema}
    parts["head"] = stage.head
    return {name: module for name, module in parts.items() if module is not None}


def capture(stage: Stage, step: int, about: dict[str, Any], accelerator: Accelerator) -> Checkpoint:
    """Return the state after a step, complete on the main process. A collective: every process must call it."""
    batches = None if stage.ends_epoch(step) else (step - stage.first_step) % stage.steps_per_epoch
    weights = {
        f"{name}.{key}": tensor
        for name, module in modules_of(stage).items()
        for key, tensor in module.state_dict().items()
    }
    state = {
        "optimizer": stage.optimizer.state_dict(),
        "schedule": stage.schedule.state_dict(),
        "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
        "sampler": stage.sampler.state_dict(batches_done=batches),
        "random": gather_object([random_state(accelerator.device)]),
    }
    return Checkpoint({**about, "stage": stage.number, "step": step}, weights, state)


def restore(stage: Stage, checkpoint: Checkpoint, accelerator: Accelerator) -> None:
    """Restore a state.

    Raises:
        CheckpointError: If it does not fit the stage; the error names the difference.
    """
    try:
        for name, module in modules_of(stage).items():
            prefix = f"{name}."
            names = [key for key in checkpoint.weights if key.startswith(prefix)]
            module.load_state_dict({key.removeprefix(prefix): checkpoint.weights[key] for key in names})
        stage.optimizer.load_state_dict(checkpoint.state["optimizer"])
        stage.schedule.load_state_dict(checkpoint.state["schedule"])
        stage.sampler.load_state_dict(checkpoint.state["sampler"])
        if accelerator.scaler is not None and checkpoint.state["scaler"] is not None:
            accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
        set_random_state(checkpoint.state["random"][accelerator.process_index], accelerator.device)
    except (KeyError, IndexError, RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.about['step']} does not fit this run: {error}"
        ) from error


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of all random generators of this process."""
    numpy_state: Any = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": [numpy_state[0], torch.from_numpy(numpy_state[1].astype(np.int64)), *numpy_state[2:]],
        "torch": torch.get_rng_state(),
    }
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set all random generators of this process."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def bytes_of(stage: Stage) -> int:
    """Estimate the size of a checkpoint; an optimizer keeps at most two further values of every trained weight."""
    held = [tensor for module in modules_of(stage).values() for tensor in module.state_dict().values()]
    trained = [parameter for parameter in stage.model.parameters() if parameter.requires_grad]
    return int(sum(tensor.nbytes for tensor in held) + 2 * sum(parameter.nbytes for parameter in trained))
