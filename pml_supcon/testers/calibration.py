"""The PML tester of the calibration of a linear probe."""

from typing import Any

from pml_supcon._checks import check_fraction, check_int
from pml_supcon._pml.testers import FittedTester, FunctionCalculator, of_splits
from pml_supcon.metrics.calibrated_probe import HELD_OUT, METRICS, calibrated_probe_metrics
from pml_supcon.metrics.calibration import BINS
from pml_supcon.metrics.logistic import INVERSE_L2, MAX_ITER, InverseL2, ProbeOptions


class CalibrationTester(FittedTester):
    """A PML tester that reports `calibrated_probe_metrics`, under keys such as ``scaled_ece_level0``.

    It fits on the reference splits and scores on the query split: ``splits_to_eval=[("test", ["train"])]``. By default
    it probes the output of the trunk as it is, with the embedder (the projection head) off.

    Neither the references nor the query may be training images of the trunk: a part of the references is held out for
    the temperature, which is too small on training images (see `fit_calibrated_probe`).

    Args:
        held_out: Share of the references that the temperature is fitted to, between 0 and 1.
        bins: Number of bins of confidence, at least 1.
        inverse_l2: Inverse of the probe's L2 penalty, above 0; "auto" chooses it by `choose_inverse_l2`.
        max_iter: Iterations of L-BFGS, at least 1.
        standardize: Give each feature mean 0 and variance 1 first, by the statistics of the fitted references.
        seed: Seed of the held-out references.
        use_trunk_output: Probe the output of the trunk rather than the output of the embedder.
        normalize_embeddings: Give each row unit length first.
        **tester_kwargs: Other options of PML's ``BaseTester``, except ``accuracy_calculator``.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option is out of range. From ``test``: as `calibrated_probe_metrics`, or if a query split is
            among its own reference splits, which is PML's default for ``splits_to_eval``.

    Examples:
        >>> import torch
        >>> labels = torch.arange(40) % 2
        >>> rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) + labels[:, None]
        >>> data = torch.utils.data.TensorDataset(rows, labels)
        >>> splits = {"train": torch.utils.data.Subset(data, range(20)), "test": data}
        >>> tester = CalibrationTester(held_out=0.5, dataloader_num_workers=0, data_device="cpu")
        >>> found = tester.test(splits, 1, torch.nn.Identity(), splits_to_eval=[("test", ["train"])])["test"]
        >>> 0 < found["ece_level0"] < 1
        True
    """

    def __init__(
        self,
        *,
        held_out: float = HELD_OUT,
        bins: int = BINS,
        inverse_l2: InverseL2 = INVERSE_L2,
        max_iter: int = MAX_ITER,
        standardize: bool = True,
        seed: int = 0,
        use_trunk_output: bool = True,
        normalize_embeddings: bool = False,
        **tester_kwargs: Any,
    ) -> None:
        options = ProbeOptions(inverse_l2=inverse_l2, max_iter=max_iter, standardize=standardize, seed=seed)
        check_fraction("held_out", held_out)
        check_int("bins", bins, low=1)
        compute = of_splits(calibrated_probe_metrics, held_out=held_out, bins=bins, **vars(options))
        names = [*METRICS, "temperature", *(f"scaled_{name}" for name in METRICS)]
        super().__init__(
            accuracy_calculator=FunctionCalculator(names, compute),
            use_trunk_output=use_trunk_output,
            normalize_embeddings=normalize_embeddings,
            **tester_kwargs,
        )
