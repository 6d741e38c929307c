from .calibrated_probe import CalibrationTester, calibrated_probe_metrics, fit_calibrated_probe
from .calibration import (
    brier_score,
    calibration_metrics,
    classwise_calibration_error,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_diagram,
)
from .clustering import clustering_metrics
from .corruption import (
    corruption_errors,
    corruption_metrics,
    mean_corruption_error,
    probe_scores,
    relative_mean_corruption_error,
    scores_by_severity,
)
from .corruption_tester import CorruptionTester
from .few_shot import FewShotTester, few_shot_metrics
from .hard_mining import HardMiningTester, hard_mining_curve
from .head_probe import majority_share, transformation_probe_metrics
from .head_probe_tester import HeadProbeTester
from .indexes import INDEXES, index_recall
from .label_budgets import learning_curve
from .linear_probe import (
    LinearProbeTester,
    fit_linear_probe,
    linear_probe_metrics,
    probe_logits,
    score_linear_probe,
)
from .per_class import per_class_means
from .probe_selection import choose_inverse_l2
from .retrieval import retrieval_metrics, retrieval_scores
from .retrieval_tester import RetrievalTester
from .temperature import fit_temperature

__all__ = [  # noqa: RUF022 - flow order
    # retrieval
    "retrieval_scores",
    "retrieval_metrics",
    "per_class_means",
    "clustering_metrics",
    "INDEXES",
    "index_recall",
    "RetrievalTester",
    # linear probes
    "fit_linear_probe",
    "choose_inverse_l2",
    "probe_logits",
    "score_linear_probe",
    "linear_probe_metrics",
    "learning_curve",
    "LinearProbeTester",
    "few_shot_metrics",
    "FewShotTester",
    # calibration
    "expected_calibration_error",
    "classwise_calibration_error",
    "negative_log_likelihood",
    "brier_score",
    "reliability_diagram",
    "fit_temperature",
    "calibration_metrics",
    "fit_calibrated_probe",
    "calibrated_probe_metrics",
    "CalibrationTester",
    # corruptions
    "probe_scores",
    "scores_by_severity",
    "corruption_metrics",
    "corruption_errors",
    "mean_corruption_error",
    "relative_mean_corruption_error",
    "CorruptionTester",
    # the projection head, the gradient
    "transformation_probe_metrics",
    "majority_share",
    "HeadProbeTester",
    "hard_mining_curve",
    "HardMiningTester",
]
