"""The PML tester that compares a projection head with the encoder below it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from pml_supcon._arrays import check_sequence
from pml_supcon._checks import check_number, check_type, shown
from pml_supcon._pml.testers import FittedTester, FunctionCalculator
from pml_supcon.metrics.head_probe import transformation_probe_metrics
from pml_supcon.metrics.linear_probe import linear_probe_metrics
from pml_supcon.metrics.logistic import INVERSE_L2, MAX_ITER, ProbeOptions
from pml_supcon.views import Change, ChangedDataset

OUTPUTS = ("encoder", "head")


class HeadProbeTester(FittedTester):
    """A PML tester that probes the trunk's output (the encoder) beside the embedder's (the projection head).

    It fits on the reference splits and scores on the query split: ``splits_to_eval=[("test", ["train"])]``. Metrics are
    ``label_encoder`` and ``label_head``, the ``top1`` of `linear_probe_metrics`, and for each task ``TASK_encoder`` and
    ``TASK_head``, the ``accuracy`` of `transformation_probe_metrics`, under keys such as ``label_head_level0``. Both
    outputs are probed as they are, not normalised. Images pass both models once per distinct change.

    Memory holds both outputs of every image under each distinct change, and a copy of them for one task at a time.

    Args:
        tasks: ``{name: changes}``; the task is to predict the change, None for the image as it is. By default none. See
            `views.transformation_tasks`. With tasks or a transform, the data sets must suit `ChangedDataset`.
        transform: Function from an image, original or changed, to the input of the models, such as
            `views.evaluation_transform`; with None the images must be tensors.
        inverse_l2: Inverse of the probes' L2 penalty, above 0.
        max_iter: Iterations of L-BFGS, at least 1.
        standardize: Give each feature mean 0 and variance 1 first, by the statistics of the references.
        **tester_kwargs: Options of PML's ``BaseTester`` other than ``accuracy_calculator``, ``normalize_embeddings``,
            ``use_trunk_output``, ``pca`` and the options of a visualizer.

    Raises:
        TypeError: If an option is not one of these, or has the wrong type, or a variant is neither callable nor None.
        ValueError: If an option is out of range or a task has fewer than two variants; from ``test``, if there is no
            embedder, or the query is among the references.

    Examples:
        >>> _ = torch.manual_seed(0)
        >>> images = torch.randint(256, (40, 1, 4, 4), dtype=torch.uint8)
        >>> labels = torch.arange(2).repeat(20)
        >>> images[labels == 1] //= 4
        >>> data = torch.utils.data.TensorDataset(images, labels)
        >>> train, test = torch.utils.data.random_split(data, [20, 20])
        >>> splits = {"train": train, "test": test}
        >>> from pml_supcon.views import Sobel
        >>> tester = HeadProbeTester(
        ...     tasks={"sobel": (None, Sobel())},
        ...     transform=lambda image: image.flatten() / 255,
        ...     dataloader_num_workers=0,
        ...     data_device="cpu",
        ... )
        >>> found = tester.test(splits, 1, torch.nn.Identity(), torch.nn.Linear(16, 2), [("test", ["train"])])["test"]
        >>> list(found)[1:], found["label_encoder_level0"]
        (['label_encoder_level0', 'label_head_level0', 'sobel_encoder_level0', 'sobel_head_level0'], 1.0)
    """

    def __init__(
        self,
        *,
        tasks: Mapping[str, Sequence[Change | None]] | None = None,
        transform: Callable[[Any], Any] | None = None,
        inverse_l2: float = INVERSE_L2,
        max_iter: int = MAX_ITER,
        standardize: bool = True,
        **tester_kwargs: Any,
    ) -> None:
        for option in ("accuracy_calculator", "normalize_embeddings", "use_trunk_output", "pca", "visualizer"):
            if option in tester_kwargs:
                raise TypeError(f"Expected no argument `{option}`, but got {tester_kwargs[option]!r}")
        self.tasks = _as_tasks(tasks)
        self.transform = transform
        check_number("inverse_l2", inverse_l2, above=0, finite=False)
        ProbeOptions(max_iter=max_iter, standardize=standardize)
        self.probe_options: dict[str, Any] = {"inverse_l2": inverse_l2, "max_iter": max_iter}
        self.probe_options["standardize"] = standardize
        names = [f"{task}_{output}" for task in ("label", *self.tasks) for output in OUTPUTS]
        super().__init__(
            accuracy_calculator=FunctionCalculator(names, self._score), normalize_embeddings=False, **tester_kwargs
        )

    def get_embeddings_for_eval(self, trunk_model: Any, embedder_model: Any, input_imgs: Any) -> torch.Tensor:
        """Return both outputs, concatenated: ``(N, width of the trunk + width of the embedder)``."""
        images = input_imgs.to(device=self.data_device, dtype=self.dtype)
        trunk_output = trunk_model(images)
        head_output = embedder_model(trunk_output)
        self._width = trunk_output.shape[1]
        return torch.cat([trunk_output, head_output], dim=1)

    def get_all_embeddings_for_all_splits(
        self, dataset_dict: dict[str, Any], trunk_model: Any, embedder_model: Any, splits: list[str], collate_fn: Any
    ) -> Any:
        """Return the embeddings of each split, and of each split under each change with `_key` as its name."""
        if isinstance(embedder_model, torch.nn.Identity):
            raise ValueError("Expected argument `embedder_model` to be the projection head, but got none, or Identity")
        changes = {change.key: change for variants in self.tasks.values() for change in variants if change is not None}
        variants: dict[Any, Any] = {}
        for split in splits:
            data = dataset_dict[split]
            variants[split] = (
                ChangedDataset(data, None, transform=self.transform) if self.tasks or self.transform else data
            )
            for change in changes.values():
                variants[_key(split, change)] = ChangedDataset(data, change, transform=self.transform)
        return super().get_all_embeddings_for_all_splits(
            variants, trunk_model, embedder_model, list(variants), collate_fn
        )

    def do_knn_and_accuracies(
        self, accuracies: dict[str, Any], embeddings_and_labels: dict[Any, Any], query: str, references: list[str]
    ) -> None:
        """Probe the tasks, which do not depend on the level of labels; then let PML probe the labels on each level."""

        def rows(splits: list[str], change: Change | None) -> torch.Tensor:
            return torch.cat([embeddings_and_labels[_key(split, change)][0] for split in splits])

        self._task_scores = {}
        for task, changes in self.tasks.items():
            train = [self._outputs(rows(references, change)) for change in changes]
            test = [self._outputs(rows([query], change)) for change in changes]
            for output in OUTPUTS:
                sides = [[variant[output] for variant in side] for side in (train, test)]
                found = transformation_probe_metrics(*sides, **self.probe_options)
                self._task_scores[f"{task}_{output}"] = found["accuracy"]
        super().do_knn_and_accuracies(accuracies, embeddings_and_labels, query, references)

    def _outputs(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"encoder": rows[:, : self._width], "head": rows[:, self._width :]}

    def _score(
        self,
        query: torch.Tensor,
        query_labels: torch.Tensor,
        reference: torch.Tensor,
        reference_labels: torch.Tensor,
        ref_includes_query: bool,  # rejected before embeddings are computed
    ) -> dict[str, float]:
        train, test = self._outputs(reference), self._outputs(query)
        labels = {}
        for output in OUTPUTS:
            rows = train[output], reference_labels, test[output], query_labels
            labels[f"label_{output}"] = linear_probe_metrics(*rows, **self.probe_options)["top1"]
        return labels | self._task_scores


def _as_tasks(tasks: Any) -> dict[str, tuple[Change | None, ...]]:
    if tasks is None:
        return {}
    check_type("tasks", tasks, Mapping, "a mapping of names to changes")
    for name, variants in tasks.items():
        check_type("tasks", name, str, "a mapping with strings as names")
        check_sequence(f"tasks[{name!r}]", variants, "changes")
        for change in variants:
            if change is not None and not callable(change):
                raise TypeError(
                    f"Expected argument `tasks` to have callables or None for {name!r}, but got {shown(change)}"
                )
        if len(variants) < 2 or name == "label":
            raise ValueError(
                "Expected argument `tasks` to have at least 2 variants of each task, and none named 'label', but "
                f"got {name!r} with {len(variants)}"
            )
    return {name: tuple(variants) for name, variants in tasks.items()}


def _key(split: str, change: Change | None) -> str:
    return split if change is None else f"{split} under {change.key}"
