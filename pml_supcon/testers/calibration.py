"""The PML tester CalibrationTester."""

from typing import Any

from pml_supcon._pml.testers import FittedTester, FunctionCalculator, of_splits
from pml_supcon.metrics.calibrated_probe import HELD_OUT, METRICS, _check_options, calibrated_probe_metrics
from pml_supcon.metrics.calibration import BINS
from pml_supcon.metrics.logistic import INVERSE_L2, MAX_ITER, InverseL2


class CalibrationTester(FittedTester):
    """PML tester that reports `calibrated_probe_metrics`, under keys such as ``scaled_ece_level0``.

    It fits on the reference splits and scores on the query split: ``splits_to_eval=[("test", ["train"])]``. By default
    it probes the output of the trunk as it is, with the embedder (the projection head) off.

    The references have to be images that the trunk was not trained on, as well as the query: a part of them is held out
    for the temperature, which comes out too small where the trunk knows them (see `fit_calibrated_probe`).

    Args:
        held_out: As for `calibrated_probe_metrics`.
        bins: As for `calibrated_probe_metrics`.
        inverse_l2: As for `calibrated_probe_metrics`.
        max_iter: As for `calibrated_probe_metrics`.
        standardize: As for `calibrated_probe_metrics`.
        seed: As for `calibrated_probe_metrics`.
        use_trunk_output: Probe the output of the trunk rather than that of the embedder.
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
        _check_options(held_out, bins, inverse_l2, max_iter, seed)

        compute = of_splits(
            calibrated_probe_metrics,
            held_out=held_out,
            bins=bins,
            inverse_l2=inverse_l2,
            max_iter=max_iter,
            standardize=standardize,
            seed=seed,
        )
        names = [*METRICS, "temperature", *(f"scaled_{name}" for name in METRICS)]
        super().__init__(
            accuracy_calculator=FunctionCalculator(names, compute),
            use_trunk_output=use_trunk_output,
            normalize_embeddings=normalize_embeddings,
            **tester_kwargs,
        )
