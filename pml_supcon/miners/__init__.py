"""Hard mining to compare with: what supervised contrastive learning is said to need none of, and what it costs."""

from pml_supcon.miners.capped_positives import CappedPositivesMiner
from pml_supcon.miners.measured import MeasuredMiner
from pml_supcon.miners.online_hard_example import OnlineHardExampleMiner

__all__ = [  # noqa: RUF022 - flow order
    "OnlineHardExampleMiner",
    "CappedPositivesMiner",
    "MeasuredMiner",
]
