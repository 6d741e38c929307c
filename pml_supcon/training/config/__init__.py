"""The settings of a training run, typed: flags and YAML alike (`--help` lists them, `--print_config` shows them)."""

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
    """What to train, on what, and how: all groups of settings in one.

    Raises:
        ValueError: a value outside its range, or settings that contradict each other; names the flag and the reason.
    """

    def __post_init__(self) -> None:
        if self.encoder is None:
            object.__setattr__(self, "encoder", DEFAULT_ENCODER)
            object.__setattr__(self, "encoder_args", DEFAULT_ENCODER_ARGS | self.encoder_args)
        check(self)

    def stage1(self) -> Plan:
        """The optimisation of stage 1."""
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
        """The optimisation of stage 2; None where it is L-BFGS's, or there is no stage 2."""
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
