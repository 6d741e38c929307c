"""How it is trained: the loss of stage 1, with its miner."""

from dataclasses import dataclass
from typing import Literal

Method = Literal["supcon_out", "supcon_in", "simclr", "npairs", "triplet", "max_margin", "cross_entropy", "joint"]
Miner = Literal["batch_hard", "semi_hard", "distance_weighted", "ohem", "capped_positives"]
Denominator = Literal["all", "one_positive", "negatives"]

SUPCON = ("supcon_out", "supcon_in", "simclr", "joint")  # methods with a loss of ours
MARGIN = ("triplet", "max_margin")
CLASSIFIER = ("cross_entropy", "joint")  # methods of one stage
MINED = ("supcon_out", "supcon_in", "joint", "npairs", *MARGIN)


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """The loss of stage 1.

    Attributes:
        method: the loss; `simclr` ignores the labels, `joint` is supcon_out on the head plus cross entropy on a
            classifier beside it.
        temperature: tau of the supcon losses.
        denominator: the denominator of the supcon losses.
        contrast_mode: which views are anchors in the supcon losses.
        positives_cap: at most this many positives besides an anchor's own other views, in the supcon losses.
        scale_by_temperature: multiply the supcon loss by tau.
        backend: which engine computes the supcon losses.
        queue_size: contrast with this many past rows too (at least a batch of them); default: none.
        momentum: fill the queue by a momentum encoder, which keeps this share of itself a step; default: by the encoder
            that is trained.
        chunk_size: most images that pass the encoder at once on a process, all views of each; default: all of a batch.
        margin: of `triplet` (default 0.05) and of `max_margin` (distance beyond which negatives count no more,
            default 1).
        triplets_per_anchor: of `triplet` without a miner: so many, drawn at random; default: all.
        label_smoothing: of the cross entropy of `cross_entropy` and `joint`.
        supcon_weight: weight of the supcon loss in `joint`.
        classifier_weight: weight of the cross entropy in `joint`.
        classifier_alone: `joint` trains the encoder by the supcon loss alone; the classifier's gradient stops before.
        miner: which pairs or triplets of a batch the loss sees; default: all.
        miner_share: share of pairs or triplets that `ohem` keeps.
        miner_cap: positives an anchor that `capped_positives` keeps.
        miner_choice: which ones it keeps.
    """

    method: Method = "supcon_out"
    temperature: float = 0.1
    denominator: Denominator = "all"
    contrast_mode: Literal["all", "one"] = "all"
    positives_cap: int | None = None
    scale_by_temperature: bool = False
    backend: Literal["auto", "triton", "tiled", "reference"] = "auto"
    queue_size: int | None = None
    momentum: float | None = None
    chunk_size: int | None = None
    margin: float | None = None
    triplets_per_anchor: int | None = None
    label_smoothing: float = 0.0
    supcon_weight: float = 1.0
    classifier_weight: float = 1.0
    classifier_alone: bool = False
    miner: Miner | None = None
    miner_share: float = 0.25
    miner_cap: int = 1
    miner_choice: Literal["random", "hardest", "easiest"] = "random"

    @property
    def contrastive(self) -> bool:
        """Whether stage 1 trains a projection head."""
        return self.method != "cross_entropy"

    @property
    def has_classifier(self) -> bool:
        """Whether stage 1 trains the classifier too, so that there is no stage 2."""
        return self.method in CLASSIFIER
