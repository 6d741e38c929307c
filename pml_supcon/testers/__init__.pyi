from .calibration import CalibrationTester
from .corruption import CorruptionTester
from .few_shot import FewShotTester
from .hard_mining import HardMiningTester
from .head_probe import HeadProbeTester
from .linear_probe import LinearProbeTester
from .retrieval import RetrievalTester

__all__ = [  # noqa: RUF022 - flow order
    "RetrievalTester",
    "LinearProbeTester",
    "FewShotTester",
    "CalibrationTester",
    "CorruptionTester",
    "HeadProbeTester",
    "HardMiningTester",
]
