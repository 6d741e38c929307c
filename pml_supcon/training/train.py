"""A training run from its settings to its record: load or resume, train both stages, score, save."""

import time
from statistics import mean
from typing import Any, NamedTuple

from accelerate import Accelerator
from accelerate.tracking import filter_trackers
from torch import nn

from pml_supcon._files import save_tensors
from pml_supcon.data.broken import broken_images_listed
from pml_supcon.models import ProjectionHead, save_encoder, save_head
from pml_supcon.training.callbacks import CheckpointCallback
from pml_supcon.training.checkpoint import Checkpoint
from pml_supcon.training.config import TrainSettings
from pml_supcon.training.digests import CLASSIFIER, ENCODER, HEAD, HISTORY
from pml_supcon.training.environment import environment
from pml_supcon.training.loop import run_stage
from pml_supcon.training.methods import part_of
from pml_supcon.training.monitoring import History, TrackerError
from pml_supcon.training.processes import on_main
from pml_supcon.training.run import RunContext, RunFolder, build_context, computed, open_labels
from pml_supcon.training.scoring import draw, embed_splits, score
from pml_supcon.training.stage import Stage, build_stage1, build_stage2
from pml_supcon.training.state import bytes_of, restore

AGAIN = "the same command with --resume continues"


class LoadedRun(NamedTuple):
    """A run ready to start, or to resume from its checkpoint."""

    context: RunContext
    stage1: Stage
    checkpoint: Checkpoint | None


def load_run(run: RunFolder[TrainSettings], accelerator: Accelerator) -> LoadedRun:
    """Read the data, build the model, load the checkpoint and create the folder; raise for invalid settings."""
    try:
        with broken_images_listed(lambda: [open_labels(run.settings)], run.path, AGAIN):
            context = build_context(run.settings, run, accelerator)
        stage1 = build_stage1(context)
        checkpoint = run.load(accelerator, context.data)
        run.check_space(bytes_of(stage1))
        accelerator.wait_for_everyone()  # every process has read the folder before the main one writes to it
        on_main(run.create)
    except BaseException:
        run.release()
        raise
    return LoadedRun(context, stage1, checkpoint)


def train_and_score(prepared: LoadedRun, started: float) -> None:
    """Train all stages, score the encoder and write the record; ``started`` is ``time.perf_counter`` at the start.

    Raises:
        BrokenImageError: If an image cannot be read; all of these are listed in the folder.
        FloatingPointError: If the loss, its gradient, the weights or the features become infinite or NaN.
        TrackerError: If the tracker cannot start.
        Stopped: If a signal arrived; a checkpoint has been written.
        CheckpointError: If the checkpoint does not fit the model.
        OSError: If a file cannot be written.
    """
    context, stage1, checkpoint = prepared
    history = History(context.run.path / HISTORY, context.accelerator)
    try:
        # 1. Train both stages, from the checkpoint if there is one.
        start_tracker(context, checkpoint)
        with broken_images_listed(lambda: [open_labels(context.settings)], context.run.path, AGAIN):
            stage, seconds = train(context, stage1, checkpoint, history, started)
            # 2. Score the frozen encoder and write the record.
            score_and_save(context, stage1, stage, history, seconds)
    finally:  # no collective, because a lost process would not answer
        history.finish()
        context.run.release()


def start_tracker(context: RunContext, checkpoint: Checkpoint | None) -> None:
    """Start the tracker of the settings, if there is one; its files are in the run's folder.

    Raises:
        TrackerError: If it cannot start.
    """
    settings, accelerator = context.run.settings, context.accelerator
    if settings.tracker is not None:  # it needs the folder, which is created after the accelerator
        accelerator.project_configuration.set_directories(str(context.run.path))
        accelerator.log_with = filter_trackers(settings.tracker, str(context.run.path))
        plain = (int, float, str)
        config = {name: value if isinstance(value, plain) else str(value) for name, value in computed(settings).items()}
        options: dict[str, Any] = {"wandb": {"dir": str(context.run.path)}}
        if checkpoint is not None:
            options["tensorboard"] = {"purge_step": checkpoint.about["step"] + 1}
        try:
            accelerator.init_trackers("pml_supcon", config=config, init_kwargs=options)
        except Exception as error:  # of any tracker: a login, a network, a disk
            accelerator.trackers.clear()  # one that has not started cannot finish
            raise TrackerError(f"Expected --tracker {settings.tracker} to start, but: {error!r}") from error


def train(
    context: RunContext, stage1: Stage, checkpoint: Checkpoint | None, history: History, started: float
) -> tuple[Stage, float]:
    """Train all stages, from the checkpoint if there is one; return the last stage and the total seconds."""
    stage = stage1
    if checkpoint is not None and checkpoint.about["stage"] == 2:
        stage = build_stage2(context, stage1) or stage1
    step, before = start_from(checkpoint, stage, context.accelerator, history)
    checkpoints = CheckpointCallback(context, history, started - before)
    run_stage(stage, step, context.accelerator, history=history, callbacks=[checkpoints])
    if stage.number == 1 and (stage2 := build_stage2(context, stage1)) is not None:
        stage = stage2
        run_stage(stage, stage.first_step, context.accelerator, history=history, callbacks=[checkpoints])
    return stage, checkpoints.seconds()


def start_from(
    checkpoint: Checkpoint | None, stage: Stage, accelerator: Accelerator, history: History
) -> tuple[int, float]:
    """Restore the checkpoint, if there is one, and cut the history to it; return its step and its seconds, or 0."""
    if checkpoint is None:
        history.cut(0)
        return 0, 0.0
    restore(stage, checkpoint, accelerator)
    history.cut(checkpoint.about["history"]["bytes"])
    return checkpoint.about["step"], checkpoint.about["seconds"]


def score_and_save(context: RunContext, stage1: Stage, stage: Stage, history: History, seconds: float) -> None:
    """Score the frozen encoder and save it: all processes compute features, the main process does the rest."""
    started = time.perf_counter()
    model, settings, accelerator, folder = stage.scored(), context.settings, context.accelerator, context.run.path
    embedded = embed_splits(context, model.encoder)
    if embedded is None:
        return
    save_encoder(model.encoder, folder / ENCODER, mean=context.data.mean, std=context.data.std)
    head = part_of(stage1.scored().top, ProjectionHead)
    if head is not None:
        save_head(head, folder / HEAD)
    classifier = part_of(model.top, nn.Linear)
    if classifier is not None:
        weights = {name: value.detach().cpu().contiguous() for name, value in classifier.state_dict().items()}
        save_tensors(folder / CLASSIFIER, weights)
    losses, per_epoch = history.losses(1), stage1.steps_per_epoch
    metrics: dict[str, Any] = {
        **score(embedded, context.split.labels, classifier, settings.seed, settings.labels),
        "train/final_loss": mean(losses[-per_epoch:]),
        "train/steps": stage.last_step,
        "train/images": len(context.split.train),
        "train/wrong_labels": context.split.wrong,
        **({"replaced_images": context.replaced} if settings.broken_images == "replace" else {}),
        **last_epoch_metrics(history),
        "seconds/total": 0.0,
        **{name: getattr(settings, name) for name in ("seed", "method", "augment", "optimizer", "data", "scored")},
        "miner": settings.miner or "none",
        "stage2": "none" if settings.has_classifier else settings.stage2_optimizer or "lbfgs",
        **{name: getattr(settings, name) or 0 for name in ("batch_size", "chunk_size")},
        "queue_size": settings.queue_rows or 0,
        "processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        **environment(accelerator.device),
    }
    metrics["seconds/total"] = round(seconds + time.perf_counter() - started, 1)
    context.run.write_metrics(metrics)  # a run with metrics is complete: what follows may fail
    scores = {name: value for name, value in metrics.items() if name.startswith(("linear_probe/", "retrieval/"))}
    history.log(scores, stage.last_step)
    if settings.pictures:
        draw(context, embedded, losses, per_epoch)


def last_epoch_metrics(history: History) -> dict[str, float]:
    """Return the metrics of the last epoch of stage 1, by their names in the record."""
    row = history.last_epoch(1)
    names = {"images_per_second": "train/images_per_second", "data_wait": "train/data_wait"}
    shown = ("alignment", "uniformity", "knn_accuracy", "temperature", "nn_accuracy")
    names |= {name: f"train/{name}" for name in shown}
    names |= {name: name for name in row if name.startswith("miner/")}
    return {title: row[name] for name, title in names.items() if name in row}
