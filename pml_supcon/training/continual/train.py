"""A continual run from its settings to its record: load or resume, train on each task, score all so far."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed

from pml_supcon._console import say
from pml_supcon.data.broken import broken_images_listed
from pml_supcon.data.images import printable
from pml_supcon.data.load import OpenedData
from pml_supcon.data.replay import ReplayBuffer, check_buffer
from pml_supcon.data.splits import split_training_set
from pml_supcon.data.streams import TaskStream, check_tasks, plan_tasks
from pml_supcon.training.checkpoint import Checkpoint
from pml_supcon.training.continual.methods import PastModel, build_task_criterion
from pml_supcon.training.continual.progress import ContinualRun, Progress, TaskCheckpoints
from pml_supcon.training.continual.record import save_record
from pml_supcon.training.continual.scores import score_tasks
from pml_supcon.training.continual.settings import ContinualSettings
from pml_supcon.training.dataloaders import build_sampler
from pml_supcon.training.digests import HISTORY
from pml_supcon.training.loop import run_stage
from pml_supcon.training.monitoring import History
from pml_supcon.training.processes import on_main
from pml_supcon.training.run import RunContext, RunFolder, open_folder, open_images, open_labels
from pml_supcon.training.stage import Stage, build_model, build_stage
from pml_supcon.training.state import bytes_of
from pml_supcon.training.train import AGAIN, start_from, start_tracker

Run = RunFolder[ContinualSettings]


class LoadedRun(NamedTuple):
    """A continual run ready to start its first task, or to resume one from a checkpoint."""

    work: ContinualRun
    context: RunContext
    stage: Stage
    checkpoint: Checkpoint | None


def open_run(settings: ContinualSettings, accelerator: Accelerator) -> Run:
    """Return the folder of the run, after all checks that need no data."""
    return open_folder(settings, settings.of_task(1), f"continual-{settings.method}", accelerator)


def load_run(run: Run, accelerator: Accelerator) -> LoadedRun:
    """Read the data, plan the tasks, load the checkpoint and create the folder; raise for invalid settings."""
    settings = run.settings
    training = settings.of_task(1)
    try:
        with broken_images_listed(lambda: [open_labels(training)], run.path, AGAIN):
            opened = hold_out(open_images(training, accelerator, run.path), settings.held_out)
            names = opened.source.class_names
            tasks = plan_tasks(
                names,
                number=settings.num_tasks,
                given=settings.tasks,
                scenario=settings.scenario,
                shuffle=settings.shuffle_classes,
                seed=settings.seed,
            )
            check_tasks(tasks, names, opened.train.labels, opened.test.labels)
            if settings.replayed:
                check_buffer(settings.buffer_size, sum(map(len, tasks)))
            data = opened.decode()
        stream = TaskStream(data, tasks, settings.scenario, settings.domain, settings.seed)
        checkpoint = run.load(accelerator, data)
        progress = Progress.resumed(settings, None if checkpoint is None else checkpoint.about["continual"])
        work = ContinualRun(run, accelerator, stream, progress, opened.replaced)
        check_images(work)
        number = 1 if checkpoint is None else checkpoint.about["stage"]
        context = build_task_context(work, number)
        stage = build_task_stage(work, context, number, None)
        past = stage.model.state_dict().values() if settings.distilled else ()  # in the checkpoints of later tasks
        run.check_space(bytes_of(stage) + sum(tensor.nbytes for tensor in past))
        accelerator.wait_for_everyone()  # every process has read the folder before the main one writes to it
        on_main(run.create)
    except BaseException:
        run.release()
        raise
    if accelerator.is_main_process:
        named = (", ".join(printable(names[label]) for label in task) for task in tasks)
        say(f"tasks: {' | '.join(named)}")
    return LoadedRun(work, context, stage, checkpoint)


def train_and_score(loaded: LoadedRun, started: float, *, report: Callable[[Path], object] | None = None) -> None:
    """Train on all tasks, score after each, and write the record; see ``training.train.train_and_score``.

    ``report`` gets the folder before the metrics are written, on the main process.
    """
    run = loaded.work.run
    history = History(run.path / HISTORY, loaded.work.accelerator)
    try:
        with broken_images_listed(lambda: [open_labels(run.settings.of_task(1))], run.path, AGAIN):
            stage, seconds = train(loaded, history, started)
            save_record(loaded.work, stage, history, seconds, report)
    finally:  # no collective, because a lost process would not answer
        history.finish()
        run.release()


def train(loaded: LoadedRun, history: History, started: float) -> tuple[Stage, float]:
    """Train on all tasks, from the checkpoint if there is one; return the last stage and the total seconds."""
    work, context, stage, checkpoint = loaded
    accelerator = work.accelerator
    start_tracker(context, checkpoint)
    step, before = start_from(checkpoint, stage, accelerator, history)
    while True:
        # 1. Train on the task; its last checkpoint comes before the scores, which a resumed run computes again.
        checkpoints = TaskCheckpoints(context, history, started - before, work.progress)
        run_stage(stage, step, accelerator, history=history, callbacks=[checkpoints])
        share_statistics(stage)
        # 2. Score all tasks so far, and draw samples of this one for the buffer.
        end_task(work, context, stage)
        if stage.number == len(work.trainings):
            return stage, checkpoints.seconds()
        # 3. The model goes on to the images of the next task and of the buffer.
        context = build_task_context(work, stage.number + 1)
        accelerator.free_memory()
        stage, step = build_task_stage(work, context, stage.number + 1, stage), stage.last_step


def hold_out(opened: OpenedData, share: float) -> OpenedData:
    """Put a share of the training images, the same in every run, in the place of the test images; 0: none."""
    if share == 0:
        return opened
    split = split_training_set(opened.train.labels, held_out=share, label_noise=0.0, seed=0)
    train, held_out = (opened.train.select(indices.tolist()) for indices in (split.train, split.held_out))
    return replace(opened, train=train, test=held_out)


def check_images(work: ContinualRun) -> None:
    """Raise ValueError unless every training has the images of a batch: from its tasks, and from the buffer by then."""
    settings, stream = work.run.settings, work.stream
    buffer = ReplayBuffer(settings.buffer_size, seed=settings.seed) if settings.replayed else None
    for number in range(1, len(work.trainings) + 1):
        new = work.new_places(number)
        images = len(new) + (len(buffer) if buffer is not None and settings.replay else 0)
        if images < settings.batch_size:
            raise ValueError(
                f"Expected --batch_size to be at most the {images} images of training {number}, from its task and the "
                f"buffer, but got {settings.batch_size}"
            )
        if buffer is not None:
            buffer.add(new, stream.labels_at(new))


def share_statistics(stage: Stage) -> None:
    """Give every process the running statistics of the main one; each has updated them by its share of the last batch.

    The next task starts from them, and a checkpoint holds the statistics of the main process alone.
    """
    for module in (stage.model, stage.scored()):
        for buffer in module.buffers():
            broadcast(buffer)


def build_task_context(work: ContinualRun, number: int) -> RunContext:
    """Build the context of training ``number``, from 1: images of its tasks and of the buffer, and their batches."""
    settings, accelerator, stream = work.run.settings, work.accelerator, work.stream
    training, places, buffer = settings.of_task(number), work.new_places(number), work.progress.buffer
    if buffer is not None and settings.replay:
        places = torch.cat([places, buffer.indices])
    labels = stream.labels_at(places)
    if not settings.contrastive:  # a class in a new domain is the same one for a classifier
        labels = stream.classes(labels)
    sampler = build_sampler(labels, training.batch_size, accelerator, seed=training.seed)
    split = split_training_set(labels, held_out=0.0, label_noise=0.0, seed=training.seed)
    images, none = stream.training_images(places, labels), split.held_out_images(stream.data)
    return RunContext(work.run, training, accelerator, stream.data, split, images, none, sampler, work.replaced)


def build_task_stage(work: ContinualRun, context: RunContext, number: int, previous: Stage | None) -> Stage:
    """Build the stage of training ``number``, from 1, with the weights of the ``previous`` one.

    Without ``previous``, as in a resumed run, the caller restores the weights of a checkpoint.
    """
    settings = work.run.settings
    set_seed(context.settings.seed)
    model = build_model(context)
    past = PastModel(model) if settings.distilled and number > 1 else None
    if previous is not None:
        model.load_state_dict(previous.model.state_dict())
        if past is not None:
            past.encoder.load_state_dict(previous.scored().state_dict())
    present = [label for task in work.trainings[number - 1] for label in work.stream.stream_labels(task)]
    criterion = build_task_criterion(settings, number, present)
    first_step = work.progress.first_step
    return build_stage(context, model, criterion, number=number, first_step=first_step, key_encoder=past)


def end_task(work: ContinualRun, context: RunContext, stage: Stage) -> None:
    """Score all tasks so far and fill the buffer, at the end of a training."""
    stream, progress, method = work.stream, work.progress, work.run.settings.method
    new, buffer = work.new_places(stage.number), progress.buffer
    places = new if buffer is None else torch.cat([new, buffer.indices])  # of Co2L's linear classifier
    if buffer is not None:
        buffer.add(new, stream.labels_at(new))
        places = places if method == "co2l" else buffer.indices
    tasks = [task for group in work.trainings[: stage.number] for task in group]
    class_il, task_il = score_tasks(context, stream, stage.scored(), method, tasks, places)
    while len(progress.class_il) < tasks[-1]:  # all at once: there is no accuracy in between
        progress.class_il.append([None] * len(stream.tasks))
        progress.task_il.append([None] * len(stream.tasks))
    progress.class_il.append(class_il)
    progress.task_il.append(task_il)
    progress.first_step = stage.last_step
