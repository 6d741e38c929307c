"""The PML tester of few-shot accuracy."""

from collections.abc import Sequence
from typing import Any, Literal

from pml_supcon._pml.testers import FittedTester, FunctionCalculator, of_splits
from pml_supcon.metrics.few_shot import DRAWS, SHOTS, Classifier, check_few_shot_options, few_shot_metrics
from pml_supcon.metrics.logistic import INVERSE_L2, MAX_ITER

#: The endings of the metrics, and the entries of `few_shot_metrics` that they report.
ENDS: dict[str, Literal["accuracy", "low", "high"]] = {"": "accuracy", "_low": "low", "_high": "high"}


class FewShotTester(FittedTester):
    """A PML tester that reports `few_shot_metrics`, under keys such as ``accuracy_5_shot_level0``.

    It draws from the reference splits and scores on the query split: ``splits_to_eval=[("test", ["train"])]``. The
    ends of the interval are ``accuracy_5_shot_low`` and ``accuracy_5_shot_high``. By default it takes the output of the
    trunk, with the embedder (the projection head) off.

    Args:
        shots: Numbers of rows of each class, each at least 1.
        draws: Number of draws for each of the shots, at least 2.
        classifier: "prototypes" or "logistic".
        seed: Seed of the draws.
        inverse_l2: Inverse of the L2 penalty of "logistic", above 0.
        max_iter: Iterations of L-BFGS of "logistic", at least 1.
        use_trunk_output: Take the output of the trunk rather than the output of the embedder.
        **tester_kwargs: Other options of PML's ``BaseTester``, except ``accuracy_calculator``.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option is out of range. From ``test``: as `few_shot_metrics`, or if a query split is among
            its own reference splits, which is PML's default for ``splits_to_eval``.

    Examples:
        >>> import torch
        >>> data = torch.utils.data.TensorDataset(torch.eye(4)[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 1]))
        >>> tester = FewShotTester(shots=[1], draws=2, dataloader_num_workers=0, data_device="cpu")
        >>> splits = {"train": data, "test": data}
        >>> found = tester.test(splits, 1, torch.nn.Identity(), splits_to_eval=[("test", ["train"])])["test"]
        >>> found["accuracy_1_shot_level0"]
        1.0
    """

    def __init__(
        self,
        *,
        shots: Sequence[int] = SHOTS,
        draws: int = DRAWS,
        classifier: Classifier = "prototypes",
        seed: int = 0,
        inverse_l2: float = INVERSE_L2,
        max_iter: int = MAX_ITER,
        use_trunk_output: bool = True,
        **tester_kwargs: Any,
    ) -> None:
        options: dict[str, Any] = {"shots": shots, "draws": draws, "classifier": classifier, "seed": seed}
        options |= {"inverse_l2": inverse_l2, "max_iter": max_iter}
        check_few_shot_options(**options)
        names = [f"accuracy_{k}_shot{end}" for k in shots for end in ENDS]
        super().__init__(
            accuracy_calculator=FunctionCalculator(names, of_splits(_accuracies, **options)),
            use_trunk_output=use_trunk_output,
            **tester_kwargs,
        )


def _accuracies(*splits: Any, **options: Any) -> dict[str, float]:
    return {
        f"accuracy_{found['shots']}_shot{end}": found[name]
        for found in few_shot_metrics(*splits, **options)
        for end, name in ENDS.items()
    }
