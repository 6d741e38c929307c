"""The learning rate of each training, chosen on held-out training images; the test split is not looked at."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pml_supcon.experiments.experiment import TOP1, Training
from pml_supcon.experiments.scales import Scale
from pml_supcon.experiments.trainings import Trainings, settings_of
from pml_supcon.training.config import TrainSettings

TUNING_SEED = 0


@dataclass(frozen=True)
class Choice:
    """A learning rate, and what was tried for it.

    Attributes:
        learning_rate: the best one, the smallest among equals.
        tried: the held-out accuracy of each, that of chance where it diverged. Empty where there was nothing to choose.
    """

    learning_rate: float
    tried: Mapping[float, float]

    @property
    def at_edge(self) -> bool:
        """Whether a better one may lie beyond those that were tried."""
        return bool(self.tried) and self.learning_rate in (min(self.tried), max(self.tried))


def tuned(training: Training) -> dict[str, Any]:
    """The settings under which a training's learning rate is chosen."""
    return dict(training.settings if training.tuned_as is None else training.tuned_as)


def rates_of(training: Training, scale: Scale) -> tuple[float, ...]:
    """The learning rates that are tried for a training."""
    return scale.rates_for(tuned(training).get("optimizer", scale.settings.get("optimizer", "sgd")))


def candidates(training: Training, scale: Scale) -> dict[float, TrainSettings]:
    """The settings of the trainings between which a learning rate is chosen; none where only one is named."""
    own, rates = tuned(training), rates_of(training, scale)
    if len(rates) == 1:
        return {}
    common = {**scale.settings, **scale.tuning}
    more = {"scored": "held_out", "seed": TUNING_SEED, "pictures": False}
    return {rate: settings_of(common, {**own, **more, "learning_rate": rate}) for rate in rates}


def choose(training: Training, scale: Scale, trainings: Trainings) -> Choice:
    """Train with every candidate and keep the one that is best on the held-out images."""
    tried = {rate: trainings.record(settings)[TOP1] for rate, settings in candidates(training, scale).items()}
    if not tried:
        return Choice(rates_of(training, scale)[0], {})
    best = max(tried.values())
    return Choice(min(rate for rate, score in tried.items() if score == best), tried)
