"""Hard-pair miners, as baselines: SupCon is claimed not to need them. ``MeasuredMiner`` reports their cost."""

from pml_supcon.miners.capped_positives import CappedPositivesMiner
from pml_supcon.miners.measured import MeasuredMiner
from pml_supcon.miners.online_hard_example import OnlineHardExampleMiner

__all__ = [  # noqa: RUF022 - flow order
    "OnlineHardExampleMiner",
    "CappedPositivesMiner",
    "MeasuredMiner",
]
