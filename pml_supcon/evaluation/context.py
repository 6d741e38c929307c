"""The context of an evaluation: the encoder, the data, and the features of both splits."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from pml_supcon.data.images import ImageData, LazyImages, MemoryImages, evenly
from pml_supcon.evaluation.cache import FeatureCache
from pml_supcon.evaluation.loading import LoadedEncoder
from pml_supcon.evaluation.settings import EvaluateSettings, Split
from pml_supcon.training.features import ImagesToEmbed, compute_features
from pml_supcon.views import Change

Output = Literal["encoder", "head"]
HEAD_BATCH = 4096


class FeaturesError(ValueError):
    """An error for features that no section can score."""


@dataclass
class EvaluationContext:
    """An encoder on a data set, as the sections of an evaluation use it.

    Attributes:
        loaded: The encoder, on the accelerator's device, with its head and its description.
        data: The images, with the size and the normalisation of the encoder.
        settings: The settings of the evaluation.
        accelerator: The processes.
        cache: The cache of features on disk; None: features are always computed.
        notes: Sentences that the report must show.
    """

    loaded: LoadedEncoder
    data: ImageData
    settings: EvaluateSettings
    accelerator: Accelerator
    cache: FeatureCache | None = None
    notes: list[str] = field(default_factory=list)
    # digests of the images of a split, and features of unchanged images, computed once each
    _fingerprints: dict[Split, str] = field(default_factory=dict, init=False, repr=False)
    _unchanged: dict[tuple[Split, int | None], Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def is_main(self) -> bool:
        """True on the process that computes the scores."""
        return bool(self.accelerator.is_main_process)

    @property
    def has_head(self) -> bool:
        """True if there is a projection head."""
        return self.loaded.head is not None

    def note(self, text: str) -> None:
        """Add a sentence to the notes as one line, unless they have it."""
        text = " ".join(text.split())
        if text not in self.notes:
            self.notes.append(text)

    def images(self, split: Split) -> MemoryImages | LazyImages:
        """Return the images of a split."""
        return self.data.train if split == "train" else self.data.test

    def labels(self, split: Split, *, most: int | None = None) -> Tensor:
        """Return the labels of a split, int64 ``(N,)``; at most `most`, evenly spread."""
        labels = self.data.train_labels if split == "train" else self.data.test_labels
        return labels[self._rows(split, most)]

    def features(
        self,
        split: Split,
        *,
        change: Change | None = None,
        of: Output = "encoder",
        most: int | None = None,
    ) -> Tensor:
        """Return the features of a split. All processes must call it, in the same order.

        Args:
            split: The split.
            change: A change of the images, applied before normalisation.
            of: "encoder" for the outputs `h` of the encoder, "head" for the outputs `g(h)` of the projection head.
            most: The largest number of images, evenly spread; None: all.

        Returns:
            ``(N, width)`` float32 on the CPU; without rows on all processes but the main one.

        Raises:
            FeaturesError: If features are not finite, on all processes; the error names their number.
        """
        most = None if most is None or most >= len(self.images(split)) else most
        place = None if change is not None else (split, most)
        features = self._unchanged[place] if place in self._unchanged else self._read_or_compute(split, change, most)
        if place is not None:  # several sections use them
            self._unchanged[place] = features
        if of == "head" and self.loaded.head is not None and self.is_main:
            device = self.accelerator.device
            with torch.no_grad():
                parts = [self.loaded.head(part.to(device)).cpu() for part in features.split(HEAD_BATCH)]
            features = torch.cat(parts)
        return features

    def _rows(self, split: Split, most: int | None) -> Tensor:
        count = len(self.images(split))
        return torch.tensor(evenly(count, count if most is None else most))

    def _read_or_compute(self, split: Split, change: Change | None, most: int | None) -> Tensor:
        key = self._key(split, change, most)
        cache, features = self.cache, None
        if cache is not None and self.is_main:
            features = cache.read(key)
        if not broadcast_object_list([features is not None])[0]:
            features = self._compute(split, change, most)
            if cache is not None and features is not None:
                cache.write(key, features)
        return torch.empty(0, 0) if features is None else features

    def _compute(self, split: Split, change: Change | None, most: int | None) -> Tensor | None:
        data, settings, rows = self.data, self.settings, self._rows(split, most).tolist()
        normalisation: dict[str, Any] = {"image_size": data.image_size, "mean": data.mean, "std": data.std}
        images = ImagesToEmbed(self.images(split), **normalisation, change=change)
        options = {"batch_size": settings.batch_size, "workers": settings.workers}
        features = compute_features(self.loaded.model, images, rows, self.accelerator, **options)
        bad = 0 if features is None else int((~features.isfinite().all(1)).sum())
        [bad] = broadcast_object_list([bad])
        if bad:
            raise FeaturesError(
                f"Expected finite features, but {self.loaded.name} gives NaN or infinity for {bad} of {len(rows)} "
                f"{split} images"
            )
        return features

    def _key(self, split: Split, change: Change | None, most: int | None) -> dict[str, object]:
        """Return the cache's key: all that determines the features."""
        if split not in self._fingerprints:
            needed = self.is_main and self.cache is not None
            self._fingerprints[split] = self.images(split).fingerprint() if needed else ""
        return {
            "version": 1,
            "encoder": self.loaded.digest,
            "images": self._fingerprints[split],
            "most": most,
            "image_size": self.data.image_size,
            "mean": self.data.mean,
            "std": self.data.std,
            "change": None if change is None else change.key,
            "batch_size": self.settings.batch_size,
        }


@contextmanager
def warnings_as_notes(context: EvaluationContext, prefix: str) -> Iterator[None]:
    """Add the warnings of a block to the notes, each once, instead of showing them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        context.note(f"{prefix}: {message}")


def note_missing_classes(
    context: EvaluationContext, train_labels: Tensor, test_labels: Tensor, consequence: str
) -> None:
    """Note the classes that test has and train lacks, with the number of their test images."""
    counts = test_labels.bincount(minlength=context.data.num_classes)
    missing = set(test_labels.tolist()) - set(train_labels.tolist())
    if missing:
        names = ", ".join(f"{context.data.class_names[label]} ({int(counts[label])})" for label in sorted(missing))
        context.note(f"No training image has a class of these test images: {names}; {consequence}.")
