"""The losses of recent steps, which stay on the device until the host looks at them."""

import math

import torch
from accelerate import Accelerator
from torch import Tensor

from pml_supcon.training.history import History, Row
from pml_supcon.training.stage import Stage

LOOK_EVERY = 50  # steps


class RecentSteps:
    """Losses, gradient norms and learning rates that are not in the history yet.

    Args:
        stage: whose steps they are.
        history: where they go.
        accelerator: takes the mean over processes.

    Attributes:
        last: the loss of the last step that was looked at.
    """

    def __init__(self, stage: Stage, history: History, accelerator: Accelerator) -> None:
        self.stage, self.history, self.accelerator = stage, history, accelerator
        self.last = math.nan
        self._seen: list[Tensor] = []
        self._rates: list[float] = []

    def add(self, loss: Tensor, norm: Tensor, rate: float) -> None:
        """Take note of a step."""
        self._seen.append(torch.stack([loss.detach().float(), norm.detach().float()]))
        self._rates.append(rate)

    @property
    def due(self) -> bool:
        """Whether there are many."""
        return len(self._seen) >= LOOK_EVERY

    def settle(self, step: int) -> None:
        """Write them into the history, the last being that of `step`.

        Raises:
            FloatingPointError: a loss is infinite or NaN, on all processes alike.
        """
        if not self._seen:
            return
        values = self.accelerator.reduce(torch.stack(self._seen), reduction="mean").tolist()
        rows: list[Row] = []
        for at, (loss, norm), rate in zip(range(step - len(values) + 1, step + 1), values, self._rates, strict=True):
            row: Row = {"stage": self.stage.number, "epoch": self.stage.epoch_of(at), "step": at, "loss": loss}
            scaled = self.accelerator.scaler is not None  # then a step that overflows is left out
            if not math.isfinite(loss) or not (math.isfinite(norm) or scaled):
                self.history.add(rows)
                what, value = ("gradient norm", norm) if math.isfinite(loss) else ("loss", loss)
                raise FloatingPointError(f"the {what} became {value} at step {at} (epoch {row['epoch']})")
            row["learning_rate"] = rate
            if math.isfinite(norm):
                row["gradient_norm"] = norm
            rows.append(row)
        self.history.add(rows)
        self.last, self._seen, self._rates = rows[-1]["loss"], [], []
