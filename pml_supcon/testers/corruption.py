"""The PML tester of a linear probe under the corruptions of ImageNet-C."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from pml_supcon._arrays import as_labels, check_sequence
from pml_supcon._checks import check_callable, check_choice, check_int, check_type
from pml_supcon._pml.testers import FittedTester, FunctionCalculator
from pml_supcon.corruptions import CORRUPTIONS, Corruption
from pml_supcon.corruptions.corruption import SEVERITIES, Strengths
from pml_supcon.metrics.calibration import BINS
from pml_supcon.metrics.corruption import (
    Errors,
    Scores,
    corruption_errors,
    corruption_metrics,
    mean_corruption_error,
    probe_scores,
)
from pml_supcon.metrics.linear_probe import fit_linear_probe
from pml_supcon.metrics.logistic import INVERSE_L2, MAX_ITER, InverseL2, ProbeOptions, log_unseen_labels
from pml_supcon.views import ChangedDataset


class CorruptionTester(FittedTester):
    """A PML tester that scores a linear probe, fitted on clean images, on clean and on corrupted images.

    It fits on the reference splits and scores on the query split: ``splits_to_eval=[("test", ["train"])]``. Metrics
    are ``accuracy_level0`` and ``ece_level0`` of the clean images, the `corruption_metrics` with the same ending, and
    with a baseline ``mean_corruption_error_level0``. Memory holds the embeddings of one corruption at a time.

    Args:
        transform: Function from an image, clean or corrupted, to the input of the network.
        corruptions: Some of `CORRUPTIONS`.
        severities: Some of 1 to 5.
        strengths: The strengths of the corruptions, see `Corruption`.
        seed: Seed of the corruptions.
        baseline: Errors for `mean_corruption_error`; needs all corruptions and severities.
        bins: Number of bins of confidence, at least 1.
        inverse_l2: Inverse of the probe's L2 penalty, above 0; "auto" chooses it by `choose_inverse_l2`.
        max_iter: Iterations of L-BFGS, at least 1.
        standardize: Give each feature mean 0 and variance 1 first, by the statistics of the references.
        use_trunk_output: Probe the output of the trunk rather than the output of the embedder.
        normalize_embeddings: Give each row unit length first.
        **tester_kwargs: Other options of PML's ``BaseTester``, except ``accuracy_calculator``. Its
            ``dataloader_num_workers`` share the work of corrupting.

    The data sets are map-style, of (image, label), with images as `ChangedDataset` takes them.

    Raises:
        ImportError: If the library of corruptions is not installed.
        TypeError: If an option has the wrong type.
        ValueError: If an option is out of range, a name or severity is given twice or not at all, or a baseline comes
            without all corruptions and severities. From ``test``: if a query split is among its own reference splits,
            which is PML's default for ``splits_to_eval``.

    Examples:
        >>> import torch
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> images = (labels * 200).byte().view(4, 1, 1, 1).expand(4, 1, 8, 8)
        >>> data = torch.utils.data.TensorDataset(images, labels)
        >>> tester = CorruptionTester(
        ...     lambda image: image.float().flatten(),
        ...     corruptions=["brightness"],
        ...     severities=[1],
        ...     dataloader_num_workers=0,
        ...     data_device="cpu",
        ... )
        >>> splits = {"train": data, "test": data}
        >>> found = tester.test(splits, 1, torch.nn.Identity(), splits_to_eval=[("test", ["train"])])["test"]
        >>> found["mean_error_level0"]
        0.0
    """

    def __init__(
        self,
        transform: Callable[[Any], Tensor],
        *,
        corruptions: Sequence[str] = CORRUPTIONS,
        severities: Sequence[int] = SEVERITIES,
        strengths: Strengths = "auto",
        seed: int = 0,
        baseline: Errors | None = None,
        bins: int = BINS,
        inverse_l2: InverseL2 = INVERSE_L2,
        max_iter: int = MAX_ITER,
        standardize: bool = True,
        use_trunk_output: bool = True,
        normalize_embeddings: bool = False,
        **tester_kwargs: Any,
    ) -> None:
        check_callable("transform", transform)
        check_int("bins", bins, low=1)
        check_sequence("corruptions", corruptions, "names")
        check_sequence("severities", severities, "integers")
        for name in corruptions:
            check_choice("corruptions", name, CORRUPTIONS)
        for severity in severities:
            check_int("severities", severity, low=SEVERITIES[0], high=SEVERITIES[-1])
        _check_each_once("corruptions", corruptions)
        _check_each_once("severities", severities)
        self._corruptions = [
            Corruption(name, severity, strengths=strengths, seed=seed)
            for name in corruptions
            for severity in severities
        ]
        if baseline is not None:
            if set(corruptions) != set(CORRUPTIONS) or set(severities) != set(SEVERITIES):
                raise ValueError(
                    "Expected arguments `corruptions` and `severities` to be all, since `baseline` is given, but got "
                    f"{len(corruptions)} corruptions at severities {tuple(severities)}"
                )
            check_type("baseline", baseline, Mapping, "a mapping")
            mean_corruption_error(baseline, baseline)  # check it now, not after all images are embedded
        ProbeOptions(inverse_l2=inverse_l2, max_iter=max_iter, standardize=standardize)
        self.transform, self.baseline, self.bins = transform, baseline, bins
        self._fit = partial(fit_linear_probe, inverse_l2=inverse_l2, max_iter=max_iter, standardize=standardize)
        self._embed: Callable[..., tuple[Tensor, Tensor]] | None = None
        blank = {(each.name, each.severity): Scores(accuracy=1.0, ece=0.0) for each in self._corruptions}
        names = ["accuracy", "ece", *corruption_metrics(blank), *["mean_corruption_error"] * (baseline is not None)]
        super().__init__(
            # Only names: PML's calculators take one set of queries, but each corruption has its own.
            accuracy_calculator=FunctionCalculator(names, _no_metrics),
            use_trunk_output=use_trunk_output,
            normalize_embeddings=normalize_embeddings,
            **tester_kwargs,
        )

    def test(self, *args: Any, **kwargs: Any) -> Any:
        """Run PML's ``BaseTester.test``."""
        try:
            return super().test(*args, **kwargs)
        finally:
            self._embed = None  # release the model and the data

    def get_all_embeddings_for_all_splits(
        self,
        dataset_dict: dict[str, Any],
        trunk_model: nn.Module,
        embedder_model: nn.Module,
        splits_to_compute_embeddings: list[str],
        collate_fn: Callable[..., Any] | None,
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the clean embeddings to PML; the corrupted ones are computed one by one, when they are scored."""

        def embed(split: str, corruption: Corruption | None = None) -> tuple[Tensor, Tensor]:
            data = ChangedDataset(dataset_dict[split], corruption, transform=self.transform)
            result: tuple[Tensor, Tensor] = self.get_all_embeddings(data, trunk_model, embedder_model, collate_fn)
            return result

        self._embed = embed
        return {split: embed(split) for split in splits_to_compute_embeddings}

    def do_knn_and_accuracies(
        self,
        accuracies: dict[str, Any],
        embeddings_and_labels: dict[str, tuple[Tensor, Tensor]],
        query_split_name: str,
        reference_split_names: list[str],
    ) -> None:
        """Add the metrics of one query split to ``accuracies``, for PML."""
        query, query_labels, reference, reference_labels = self.set_reference_and_query(
            embeddings_and_labels, query_split_name, reference_split_names
        )
        if self._embed is None:
            raise RuntimeError("Expected a call of `test`, which embeds the corrupted images")
        self.label_levels = self.label_levels_to_evaluate(query_labels)
        probes = {level: self._fit(reference, reference_labels[:, level]) for level in self.label_levels}
        metrics: dict[int, dict[str, float]] = {}
        for level, probe in probes.items():
            log_unseen_labels(as_labels(query_labels[:, level], "labels", len(query)), probe.classes_)
            clean = probe_scores(probe, query, query_labels[:, level], bins=self.bins)
            metrics[level] = {"accuracy": clean["accuracy"], "ece": clean["ece"]}
        cells: dict[int, dict[tuple[str, int], Scores]] = {level: {} for level in probes}
        for corruption in self._corruptions:
            features, labels = self._embed(query_split_name, corruption)
            for level, probe in probes.items():
                scores = probe_scores(probe, features, labels[:, level], bins=self.bins)
                cells[level][corruption.name, corruption.severity] = scores
        for level, grid in cells.items():
            metrics[level] |= corruption_metrics(grid)
            if self.baseline is not None:
                metrics[level]["mean_corruption_error"] = mean_corruption_error(corruption_errors(grid), self.baseline)
            for metric, value in metrics[level].items():
                accuracies[self.accuracies_keyname(metric, label_hierarchy_level=level)] = value
        if len(self.label_levels) > 1:
            names = self.accuracy_calculator.get_curr_metrics()
            self.calculate_average_accuracies(accuracies, names, self.label_levels)


def _check_each_once(name: str, values: Sequence[Any]) -> None:
    if not values or len(set(values)) != len(values):
        raise ValueError(f"Expected argument `{name}` to hold at least one, and none twice, but got {tuple(values)}")


def _no_metrics(**splits: Any) -> dict[str, float]:
    return {}
