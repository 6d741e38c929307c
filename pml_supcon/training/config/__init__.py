"""The typed settings of a training run, from flags and YAML (``--help`` lists them, ``--print_config`` prints them)."""

from dataclasses import dataclass

from pml_supcon.training.config.checks import check
from pml_supcon.training.config.settings import (
    DEFAULT_ENCODER,
    DEFAULT_ENCODER_ARGS,
    FREE_TO_CHANGE,
    DataSettings,
    MethodSettings,
    ModelSettings,
    Plan,
    RunSettings,
    Stage1Settings,
    Stage2Settings,
)

__all__ = [  # noqa: RUF022 - as `--help` lists them
    "MethodSettings",
    "DataSettings",
    "ModelSettings",
    "Stage1Settings",
    "Stage2Settings",
    "RunSettings",
    "TrainSettings",
    "Plan",
    "GROUPS",
    "FREE_TO_CHANGE",
]

GROUPS = (MethodSettings, DataSettings, ModelSettings, Stage1Settings, Stage2Settings, RunSettings)


@dataclass(frozen=True, kw_only=True)
class TrainSettings(RunSettings, Stage2Settings, Stage1Settings, ModelSettings, DataSettings, MethodSettings):
    """All groups of settings of a training run.

    Raises:
        ValueError: If a value is out of range, or settings contradict each other; the error names the flag.
    """

    def __post_init__(self) -> None:
        if self.encoder is None:
            object.__setattr__(self, "encoder", DEFAULT_ENCODER)
            object.__setattr__(self, "encoder_args", DEFAULT_ENCODER_ARGS | self.encoder_args)
        check(self)

    def stage1(self) -> Plan:
        """Return the optimisation of stage 1."""
        return Plan(
            epochs=self.epochs,
            optimizer=self.optimizer,
            optimizer_args=self.optimizer_args,
            learning_rate=self.learning_rate * (self.batch_size / 256 if self.scale_learning_rate else 1),
            weight_decay=self.weight_decay,
            warmup_epochs=self.warmup_epochs,
            schedule=self.schedule,
            decay_epochs=self.decay_epochs,
            decay_rate=self.decay_rate,
            decay_all=self.decay_all,
            clip_gradient_norm=self.clip_gradient_norm,
        )

    def stage2(self) -> Plan | None:
        """Return the optimisation of stage 2, or None for logistic regression by L-BFGS or without a stage 2."""
        if self.stage2_optimizer is None:
            return None
        batch_size = self.stage2_batch_size or self.batch_size
        return Plan(
            epochs=self.stage2_epochs,
            optimizer=self.stage2_optimizer,
            optimizer_args=self.stage2_optimizer_args,
            learning_rate=self.stage2_learning_rate * (batch_size / 256 if self.stage2_scale_learning_rate else 1),
            weight_decay=self.stage2_weight_decay,
            warmup_epochs=self.stage2_warmup_epochs,
            schedule=self.stage2_schedule,
            decay_epochs=self.stage2_decay_epochs,
            decay_rate=self.stage2_decay_rate,
        )
