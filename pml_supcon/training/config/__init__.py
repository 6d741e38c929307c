"""The typed settings of a training run, from flags and YAML (``--help`` lists them, ``--print_config`` prints them)."""

from dataclasses import dataclass, fields

from pml_supcon.training.config.checks import check
from pml_supcon.training.config.settings import (
    DEFAULT_ENCODER,
    DEFAULT_ENCODER_ARGS,
    NNCLR_QUEUE,
    DataSettings,
    MethodSettings,
    ModelSettings,
    MonitoringSettings,
    OptimizationSettings,
    RunSettings,
    Stage1Settings,
    Stage2Settings,
)

#: The groups, in the order of `--help`.
GROUPS = (MethodSettings, DataSettings, ModelSettings, Stage1Settings, Stage2Settings, RunSettings, MonitoringSettings)


@dataclass(frozen=True, kw_only=True)
class TrainSettings(
    MonitoringSettings, RunSettings, Stage2Settings, Stage1Settings, ModelSettings, DataSettings, MethodSettings
):
    """All groups of settings of a training run.

    Raises:
        ValueError: If a value is out of range, or settings contradict each other; the error names the flag.
    """

    def __post_init__(self) -> None:
        if self.encoder is None:
            object.__setattr__(self, "encoder", DEFAULT_ENCODER)
            object.__setattr__(self, "encoder_args", DEFAULT_ENCODER_ARGS | self.encoder_args)
        check(self)

    @property
    def mixed(self) -> bool:
        """True if the images of a batch are mixed, so that labels are shares of classes."""
        return self.mixup is not None or self.cutmix is not None

    @property
    def queue_rows(self) -> int | None:
        """The number of rows of the queue, None without one: ``queue_size``, or the default of ``nnclr``."""
        if self.queue_size is None and self.method == "nnclr":
            return max(NNCLR_QUEUE, self.batch_size)
        return self.queue_size

    def stage1(self) -> OptimizationSettings:
        """Return the optimisation of stage 1."""
        return self._plan("", self.batch_size)

    def stage2(self) -> OptimizationSettings | None:
        """Return the optimisation of stage 2, or None for logistic regression by L-BFGS or without a stage 2."""
        if self.stage2_optimizer is None:
            return None
        return self._plan("stage2_", self.stage2_batch_size or self.batch_size)

    def _plan(self, prefix: str, batch_size: int) -> OptimizationSettings:
        names = [field.name for field in fields(OptimizationSettings) if hasattr(self, prefix + field.name)]
        values = {name: getattr(self, prefix + name) for name in names}
        if getattr(self, f"{prefix}scale_learning_rate"):
            values["learning_rate"] *= batch_size / 256
        return OptimizationSettings(**values)
