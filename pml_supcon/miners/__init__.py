"""Hard mining to compare with: what supervised contrastive learning is said to need none of, and what it costs."""

from .capped_positives import CappedPositivesMiner
from .measured import MeasuredMiner
from .online_hard_example import OnlineHardExampleMiner

__all__ = [  # noqa: RUF022 - flow order
    "OnlineHardExampleMiner",
    "CappedPositivesMiner",
    "MeasuredMiner",
]
