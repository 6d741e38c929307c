from .calibrated_probe import calibrated_probe_metrics, fit_calibrated_probe
from .calibration import (
    brier_score,
    calibration_metrics,
    classwise_calibration_error,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_diagram,
)
from .clustering import clustering_metrics
from .continual import (
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    class_il_accuracies,
    forgetting,
    task_il_accuracies,
)
from .corruption import (
    corruption_errors,
    corruption_metrics,
    mean_corruption_error,
    probe_scores,
    relative_mean_corruption_error,
    scores_by_severity,
)
from .embedding_maps import EmbeddingMap, embedding_map
from .few_shot import few_shot_metrics
from .gallery import WorstQueries, worst_queries
from .hard_mining import hard_mining_curve
from .head_probe import majority_share, transformation_probe_metrics
from .label_sets_probe import label_sets_probe_metrics
from .learning_curves import learning_curve
from .level_probe import level_probe_metrics
from .linear_probe import fit_linear_probe, linear_probe_metrics, probe_logits, score_linear_probe
from .number_probe import number_probe_metrics
from .per_class import per_class_means
from .probe_selection import choose_inverse_l2
from .retrieval import retrieval_metrics, retrieval_scores
from .shots import shot_accuracies
from .temperature import fit_temperature

__all__ = [  # noqa: RUF022 - flow order
    # retrieval
    "retrieval_scores",
    "retrieval_metrics",
    "per_class_means",
    "clustering_metrics",
    "worst_queries",
    "WorstQueries",
    "embedding_map",
    "EmbeddingMap",
    # linear probes
    "fit_linear_probe",
    "choose_inverse_l2",
    "probe_logits",
    "score_linear_probe",
    "linear_probe_metrics",
    "learning_curve",
    "few_shot_metrics",
    # label sets, hierarchies, numbers, long tails
    "label_sets_probe_metrics",
    "level_probe_metrics",
    "number_probe_metrics",
    "shot_accuracies",
    # continual learning
    "class_il_accuracies",
    "task_il_accuracies",
    "average_accuracy",
    "forgetting",
    "backward_transfer",
    "average_incremental_accuracy",
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
    # corruptions
    "probe_scores",
    "scores_by_severity",
    "corruption_metrics",
    "corruption_errors",
    "mean_corruption_error",
    "relative_mean_corruption_error",
    # the projection head, the gradient
    "transformation_probe_metrics",
    "majority_share",
    "hard_mining_curve",
]
