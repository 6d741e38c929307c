"""The choice of each training's learning rate on held-out training images, without the test split."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pml_supcon.experiments.experiment import Training
from pml_supcon.experiments.scales import Scale
from pml_supcon.training.config import TrainSettings
from pml_supcon.training.config.parser import DEFAULTS, drop_inapplicable

TUNING_SEED = 0


@dataclass(frozen=True)
class Choice:
    """A learning rate and the candidates it was chosen from.

    Attributes:
        learning_rate: The best candidate; among equals the smallest.
        tried: The held-out accuracy of each candidate; of one that diverged, the accuracy of chance. Empty if there
            was one candidate only.
    """

    learning_rate: float
    tried: Mapping[float, float]

    @property
    def at_edge(self) -> bool:
        """True if the best candidate is the lowest or highest, so that a better one may be outside their range."""
        return bool(self.tried) and self.learning_rate in (min(self.tried), max(self.tried))


def candidates(training: Training, scale: Scale) -> dict[float, TrainSettings]:
    """Return the settings of the tuning trainings by learning rate; empty if there is one candidate only."""
    own, rates = tuning_settings(training), candidate_rates(training, scale)
    if len(rates) == 1:
        return {}
    common = {**scale.settings, **scale.tuning}
    more = {"scored": "held_out", "seed": TUNING_SEED, "pictures": False}
    return {rate: settings_of(common, {**own, **more, "learning_rate": rate}) for rate in rates}


def choose(tried: Mapping[float, float], training: Training, scale: Scale) -> Choice:
    """Return the candidate with the highest held-out accuracy."""
    if not tried:
        return Choice(candidate_rates(training, scale)[0], {})
    best = max(tried.values())
    return Choice(min(rate for rate, score in tried.items() if score == best), tried)


def tuning_settings(training: Training) -> dict[str, Any]:
    """Return the settings under which a training's learning rate is chosen."""
    return dict(training.settings if training.tuned_as is None else training.tuned_as)


def candidate_rates(training: Training, scale: Scale) -> tuple[float, ...]:
    """Return the candidate learning rates of a training."""
    return scale.rates_for(tuning_settings(training).get("optimizer", scale.settings.get("optimizer", "sgd")))


def settings_of(common: Mapping[str, Any], own: Mapping[str, Any]) -> TrainSettings:
    """Merge settings: `own` first, then the entries of `common` that apply to the method, then defaults.

    Raises:
        ValueError: If two settings of `own` contradict each other.
        TypeError: If there is no such setting.
    """
    values, _ = drop_inapplicable({**DEFAULTS, **common, **own}, set(own))
    return TrainSettings(**values)
