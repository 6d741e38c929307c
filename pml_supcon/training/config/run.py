"""Where a run leaves its files, how it goes on after an end, and how it is watched."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Files, checkpoints and what is watched.

    Attributes:
        output: the run's folder; default: a new folder under `runs/`.
        seed: seed of weights, batches and augmentation.
        resume: go on from the newest checkpoint in `output`; start where there is none.
        save_every: steps between checkpoints; default: at the end of each epoch.
        keep: so many checkpoints are kept.
        tracker: a tracker of Accelerate's (tensorboard, wandb, trackio, ...) that is told too; `history.jsonl` in the
            run's folder always is.
        knn_every: epochs between k-NN accuracies of the held-out images, where there are any.
        pictures: draw the loss curve, the map of the embeddings and the gallery.
    """

    output: Path | None = None
    seed: int = 0
    resume: bool = False
    save_every: int | None = None
    keep: int = 2
    tracker: str | None = None
    knn_every: int = 5
    pictures: bool = True


#: Settings that may differ when a run goes on: they do not change what it computes.
FREE_TO_CHANGE = frozenset({"output", "resume", "save_every", "keep", "tracker", "workers", "pictures"})
