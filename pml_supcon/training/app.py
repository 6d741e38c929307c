r"""Train an encoder by any method of the paper, then score it: retrieval and a linear classifier.

    accelerate launch --quiet recipes/train.py                                      # digits, one process, a minute
    accelerate launch --quiet recipes/train.py --method triplet --miner batch_hard  # a comparator: one flag differs
    accelerate launch --quiet recipes/train.py --config pml_supcon/configs/cifar10.yaml
    accelerate launch --quiet recipes/train.py --data imagefolder:my/images --epochs 100 --output runs/mine
    accelerate launch --quiet recipes/train.py --output runs/mine --resume          # continue after a stop or kill
    ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 recipes/train.py         # several processes without a GPU

Stage 1 trains the encoder under a projection head with a contrastive loss over V views of each image, under a
classifier with cross entropy, or both at once; stage 2 freezes the encoder, drops the head and trains a linear
classifier. The test split is touched once, after the last epoch. `--help` lists the settings, README has the figures of
the last record.
"""

import signal
import sys
import time
from collections.abc import Sequence
from statistics import mean
from typing import Any, NamedTuple, NoReturn

from accelerate import Accelerator, PartialState
from accelerate.tracking import filter_trackers
from safetensors.torch import save_file

from pml_supcon.models import save_encoder, save_head
from pml_supcon.training import pictures as report
from pml_supcon.training.checkpoints import Checkpoint, CheckpointError
from pml_supcon.training.config.parser import parse_settings
from pml_supcon.training.ending import fail
from pml_supcon.training.history import History
from pml_supcon.training.job import Job, check_tracker, open_job, open_run
from pml_supcon.training.keeper import RunKeeper
from pml_supcon.training.loop import run_stage
from pml_supcon.training.methods import classifier_of, head_of
from pml_supcon.training.run_folder import (
    CLASSIFIER,
    ENCODER,
    HEAD,
    RunFolder,
    check_space,
    commit,
    computed,
    environment,
)
from pml_supcon.training.run_state import bytes_of, restore
from pml_supcon.training.scoring import draw, embed_splits, score
from pml_supcon.training.stage import Stage
from pml_supcon.training.stages import build_stage1, build_stage2
from pml_supcon.training.stopping import Stopped

SHOWN = ("scored", "linear_probe/", "retrieval/", "train/", "miner/", "seconds/", "seed")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, score, report."""
    started = time.perf_counter()
    settings = parse_settings(arguments)
    try:
        check_tracker(settings.tracker)
        commit()  # now: files may change while it runs
        accelerator = Accelerator(mixed_precision=settings.mixed_precision)
        run = open_run(settings, accelerator)
        prepared = None if run.finished else prepare(run, accelerator)
    except (ValueError, TypeError, OSError, ImportError) as error:
        fail("train.py", error)
    except KeyboardInterrupt:
        stop(Stopped(signal.SIGINT, "before the first step"), run=None)
    try:
        if prepared is not None:
            complete(prepared, started)
        show(run)
    except FloatingPointError as error:
        fail(
            "train.py",
            f"{error}; last good checkpoint: {run.last_good()}; another --output with a lower --learning_rate may do "
            "better",
        )
    except (CheckpointError, OSError) as error:
        fail("train.py", error)
    except Stopped as stopped:
        stop(stopped, run)
    except KeyboardInterrupt:
        stop(Stopped(signal.SIGINT, "after the last step"), run)
    accelerator.state.destroy_process_group()


class Prepared(NamedTuple):
    """A run that can start, or go on from a checkpoint."""

    job: Job
    stage1: Stage
    checkpoint: Checkpoint | None


def prepare(run: RunFolder, accelerator: Accelerator) -> Prepared:
    """Read the data, build the model, and make the run's folder; what is wrong with the settings is raised here."""
    job = open_job(run.settings, run, accelerator)
    stage1 = build_stage1(job)
    checkpoint = run.load(accelerator)
    check_space(run.path, bytes_of(stage1), run.settings.keep, len(run.checkpoints.all()))
    accelerator.wait_for_everyone()  # all have looked into the folder before one of them writes there
    if accelerator.is_main_process:
        run.create()
    return Prepared(job, stage1, checkpoint)


def complete(prepared: Prepared, started: float) -> None:
    """Train to the end and score; the run has its record then.

    Args:
        prepared: the run.
        started: when it started (`time.perf_counter`).

    Raises:
        FloatingPointError: the loss, its gradient, the weights or the features became infinite or NaN.
        Stopped: a signal came; a checkpoint was written first.
        CheckpointError: the checkpoint does not fit the model.
        OSError: a file could not be written.
    """
    job, stage1, checkpoint = prepared
    try:
        history = open_history(job, checkpoint)
        stage, seconds = train(job, stage1, checkpoint, history, started)
        finish(job, stage1, stage, history, seconds)
    finally:  # no collective, which a process that is gone would not answer
        for tracker in job.accelerator.trackers:
            tracker.finish()
        job.run.release()


def open_history(job: Job, checkpoint: Checkpoint | None) -> History:
    """The history of the run, and the tracker."""
    settings, accelerator = job.settings, job.accelerator
    if settings.tracker is not None:  # it wants a folder, which the accelerator is made before
        accelerator.project_configuration.set_directories(str(job.run.path))
        accelerator.log_with = filter_trackers(settings.tracker, str(job.run.path))
        plain = (int, float, str)
        config = {name: value if isinstance(value, plain) else str(value) for name, value in computed(settings).items()}
        again = {} if checkpoint is None else {"tensorboard": {"purge_step": checkpoint.about["step"] + 1}}
        accelerator.init_trackers("pml_supcon", config=config, init_kwargs=again)
    return History(job.run.path / "history.jsonl", accelerator)


def train(
    job: Job, stage1: Stage, checkpoint: Checkpoint | None, history: History, started: float
) -> tuple[Stage, float]:
    """All stages, from a checkpoint where the run goes on; returns the last one and the seconds in all."""
    stage, step, before = stage1, 0, 0.0
    if checkpoint is not None:
        step, before = checkpoint.about["step"], checkpoint.about["seconds"]
        if checkpoint.about["stage"] == 2:
            stage = build_stage2(job, stage1) or stage1
        restore(stage, checkpoint, job.accelerator)
    history.cut(step)
    keeper = RunKeeper(job, history, started - before)
    run_stage(stage, step, keeper, history, job.accelerator)
    if stage.number == 1 and (stage2 := build_stage2(job, stage1)) is not None:
        stage = stage2
        run_stage(stage, stage.first_step, keeper, history, job.accelerator)
    return stage, keeper.seconds()


def finish(job: Job, stage1: Stage, stage: Stage, history: History, seconds: float) -> None:
    """Score the frozen encoder and leave its files; features by all processes, the rest by one."""
    started = time.perf_counter()
    model, settings, accelerator = stage.scored(), job.settings, job.accelerator
    embedded = embed_splits(job, model.encoder)
    if embedded is None:
        return
    save_encoder(model.encoder, job.run.path / ENCODER, mean=job.data.mean, std=job.data.std)
    head = head_of(stage1.scored().top)
    if head is not None:
        save_head(head, job.run.path / HEAD)
    classifier = classifier_of(model.top)
    if classifier is not None:
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in classifier.state_dict().items()},
            job.run.path / CLASSIFIER,
        )
    losses, per_epoch = history.losses(1), stage1.steps_per_epoch
    metrics: dict[str, Any] = {
        **score(embedded, job.division.labels, classifier, settings.seed),
        "train/final_loss": mean(losses[-per_epoch:]),
        "train/steps": stage.last_step,
        "train/images": len(job.division.train),
        "train/wrong_labels": job.division.wrong,
        **seen_last(history),
        "seconds/total": 0.0,
        "seed": settings.seed,
        "method": settings.method,
        "miner": settings.miner or "none",
        "augment": settings.augment,
        "optimizer": settings.optimizer,
        "stage2": "none" if settings.has_classifier else settings.stage2_optimizer or "lbfgs",
        "data": settings.data,
        "scored": settings.scored,
        "batch_size": settings.batch_size,
        "chunk_size": settings.chunk_size or 0,
        "queue_size": settings.queue_size or 0,
        "processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        **environment(accelerator.device),
    }
    if settings.pictures:
        report.draw_loss_curve(losses, per_epoch, job.run.path / "loss_curve.png")
        draw(job, embedded)
    metrics["seconds/total"] = round(seconds + time.perf_counter() - started, 1)
    scores = {name: value for name, value in metrics.items() if name.startswith(("linear_probe/", "retrieval/"))}
    accelerator.log(scores, step=stage.last_step)
    job.run.write_metrics(metrics)  # last: a run with metrics is a finished run


def seen_last(history: History) -> dict[str, float]:
    """What the last epoch of stage 1 showed, by its name in the record."""
    row = history.last_epoch(1)
    names = {"images_per_second": "train/images_per_second", "data_wait": "train/data_wait"}
    names |= {name: f"train/{name}" for name in ("alignment", "uniformity", "knn_accuracy")}
    names |= {name: name for name in row if name.startswith("miner/")}
    return {title: row[name] for name, title in names.items() if name in row}


def show(run: RunFolder) -> None:
    """Print the summary of a finished run, on one process."""
    if not PartialState().is_main_process:
        return
    metrics = run.metrics()
    print(report.summary_table({name: value for name, value in metrics.items() if name.startswith(SHOWN)}))
    print(f"run folder: {run.path}")


def stop(stopped: Stopped, run: RunFolder | None) -> NoReturn:
    """End the program as a signal wants it, with one line: 128 + its number is what shells expect."""
    if PartialState().is_main_process:
        saved = "" if run is None else f"; saved {run.last_good()}; go on with: --output {run.path} --resume"
        name = signal.Signals(stopped.number).name
        print(f"train.py: stopped by {name} {stopped}{saved}", file=sys.stderr)
    sys.exit(128 + stopped.number)


if __name__ == "__main__":
    main()
