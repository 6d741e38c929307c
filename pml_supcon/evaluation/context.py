"""What an evaluation looks at: an encoder and its features of two splits."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from pml_supcon.data.images import ImageData, evenly
from pml_supcon.evaluation.cache import FeatureCache
from pml_supcon.evaluation.loading import LoadedEncoder
from pml_supcon.evaluation.settings import EvaluateSettings
from pml_supcon.training.features import ImagesToEmbed, embed
from pml_supcon.views import Change

Split = Literal["train", "test"]
BATCH_OF_HEAD = 4096


class FeaturesError(ValueError):
    """Features that no section can score."""


@dataclass(frozen=True)
class EvaluationContext:
    """An encoder on a data set, as the sections of an evaluation see it.

    Attributes:
        loaded: the encoder, on the accelerator's device, and what is known of it.
        data: the images, with the size and the normalisation of the encoder's.
        settings: of the evaluation.
        accelerator: the processes.
        cache: features that were computed before; None: they are always computed.
        notes: sentences that the report must show.
        fingerprints: of the images of each split, once they are known.
        plain: features of unchanged images, once they are known.
    """

    loaded: LoadedEncoder
    data: ImageData
    settings: EvaluateSettings
    accelerator: Accelerator
    cache: FeatureCache | None
    notes: list[str] = field(default_factory=list)
    fingerprints: dict[Split, str] = field(default_factory=dict, repr=False)
    plain: dict[tuple[Split, int | None], Tensor] = field(default_factory=dict, repr=False)

    @property
    def is_main(self) -> bool:
        """Whether this process scores."""
        return bool(self.accelerator.is_main_process)

    @property
    def has_head(self) -> bool:
        """Whether there is a projection head."""
        return self.loaded.head is not None

    @property
    def encoder(self) -> nn.Module:
        """In evaluation mode, on the accelerator's device."""
        return self.loaded.model

    def note(self, text: str) -> None:
        """Note a sentence that the report must show."""
        if text not in self.notes:
            self.notes.append(text)

    def count(self, split: Split) -> int:
        """How many images a split has."""
        return len(self.data.train if split == "train" else self.data.test)

    def labels(self, split: Split, *, most: int | None = None) -> Tensor:
        """The labels of a split, int64 `(N,)`, of at most so many images, evenly spread."""
        labels = self.data.train_labels if split == "train" else self.data.test_labels
        return labels[self._rows(split, most)]

    def features(
        self,
        split: Split,
        *,
        change: Change | None = None,
        of: Literal["encoder", "head"] = "encoder",
        most: int | None = None,
    ) -> Tensor:
        """The features of a split. All processes call it, in the same order.

        Args:
            split: which one.
            change: a change of its images, made before they are normalised.
            of: the encoder's output `h`, or that of the projection head over it, `g(h)`.
            most: at most so many images, evenly spread.

        Returns:
            `(N, width)` float32 on the CPU; without rows on other processes than the main one.

        Raises:
            FeaturesError: in all processes, where some are not finite; names how many.
        """
        most = None if most is None or most >= self.count(split) else most
        place = None if change is not None else (split, most)
        features = self.plain[place] if place in self.plain else self._cached(split, change, most)
        if place is not None:  # several sections ask for it
            self.plain[place] = features
        if of == "head" and self.loaded.head is not None and self.is_main:
            device = self.accelerator.device
            with torch.no_grad():
                parts = [self.loaded.head(part.to(device)).cpu() for part in features.split(BATCH_OF_HEAD)]
            features = torch.cat(parts)
        return features

    def _rows(self, split: Split, most: int | None) -> Tensor:
        count = self.count(split)
        return torch.tensor(evenly(count, count if most is None else most))

    def _cached(self, split: Split, change: Change | None, most: int | None) -> Tensor:
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
        data = self.data
        images = ImagesToEmbed(
            data.train if split == "train" else data.test,
            image_size=data.image_size,
            mean=data.mean,
            std=data.std,
            change=change,
        )
        features = embed(
            self.encoder,
            images,
            self._rows(split, most).tolist(),
            self.accelerator,
            batch_size=self.settings.batch_size,
            workers=self.settings.workers,
        )
        bad = 0 if features is None else int((~features.isfinite().all(1)).sum())
        [bad] = broadcast_object_list([bad])
        if bad:
            raise FeaturesError(
                f"Expected finite features, but {self.loaded.name} gives NaN or infinity for {bad} of "
                f"{len(self._rows(split, most))} {split} images"
            )
        return features

    def _key(self, split: Split, change: Change | None, most: int | None) -> dict[str, object]:
        """All that features follow from."""
        if split not in self.fingerprints:
            images = self.data.train if split == "train" else self.data.test
            self.fingerprints[split] = images.fingerprint() if self.is_main and self.cache is not None else ""
        return {
            "version": 1,
            "encoder": self.loaded.digest,
            "images": self.fingerprints[split],
            "most": most,
            "image_size": self.data.image_size,
            "mean": self.data.mean,
            "std": self.data.std,
            "change": None if change is None else change.key,
            "batch_size": self.settings.batch_size,
        }
