"""The PML tester of a linear probe."""

from typing import Any

from pml_supcon._pml.testers import FittedTester, FunctionCalculator, of_splits
from pml_supcon.metrics.linear_probe import linear_probe_metrics
from pml_supcon.metrics.logistic import INVERSE_L2, MAX_ITER, InverseL2, ProbeOptions


class LinearProbeTester(FittedTester):
    """A PML tester that reports `linear_probe_metrics`, under keys such as ``top1_level0``.

    It fits on the reference splits and scores on the query split: ``splits_to_eval=[("test", ["train"])]``.
    By default it probes the output of the trunk as it is, with the embedder (the projection head) off.

    Args:
        inverse_l2: Inverse of the L2 penalty, above 0; "auto" chooses it by `choose_inverse_l2`.
        max_iter: Iterations of L-BFGS, at least 1.
        standardize: Give each feature mean 0 and variance 1 first, by the statistics of the references.
        seed: Seed of the rows that "auto" holds out.
        use_trunk_output: Probe the output of the trunk rather than the output of the embedder.
        normalize_embeddings: Give each row unit length first.
        **tester_kwargs: Other options of PML's ``BaseTester``, except ``accuracy_calculator``.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option is out of range. From ``test``: if a query split is among its own reference splits,
            which is PML's default for ``splits_to_eval``; this is checked before embeddings are computed.

    Examples:
        >>> import torch
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> splits = {
        ...     "train": torch.utils.data.TensorDataset(torch.eye(4), labels),
        ...     "test": torch.utils.data.TensorDataset(3 * torch.eye(4), labels),
        ... }
        >>> tester = LinearProbeTester(dataloader_num_workers=0, data_device="cpu")
        >>> trunk = torch.nn.Identity()
        >>> tester.test(splits, 1, trunk, splits_to_eval=[("test", ["train"])])["test"]["top1_level0"]
        1.0
    """

    def __init__(
        self,
        *,
        inverse_l2: InverseL2 = INVERSE_L2,
        max_iter: int = MAX_ITER,
        standardize: bool = True,
        seed: int = 0,
        use_trunk_output: bool = True,
        normalize_embeddings: bool = False,
        **tester_kwargs: Any,
    ) -> None:
        options = ProbeOptions(inverse_l2=inverse_l2, max_iter=max_iter, standardize=standardize, seed=seed)
        compute = of_splits(linear_probe_metrics, **vars(options))
        super().__init__(
            accuracy_calculator=FunctionCalculator(["top1", "top5"], compute),
            use_trunk_output=use_trunk_output,
            normalize_embeddings=normalize_embeddings,
            **tester_kwargs,
        )
