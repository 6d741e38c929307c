"""The files of a finished continual run: encoder, accuracies and record."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from pml_supcon._console import note
from pml_supcon._files import write_atomic
from pml_supcon.metrics import average_accuracy, forgetting
from pml_supcon.models import ProjectionHead, save_encoder, save_head
from pml_supcon.training.continual.progress import ContinualRun, Matrix
from pml_supcon.training.digests import CONTINUAL, ENCODER, HEAD
from pml_supcon.training.environment import environment
from pml_supcon.training.methods import part_of
from pml_supcon.training.monitoring import History
from pml_supcon.training.run import computed
from pml_supcon.training.stage import Stage


def save_record(
    work: ContinualRun,
    stage: Stage,
    history: History,
    seconds: float,
    report: Callable[[Path], object] | None = None,
) -> None:
    """Save the last encoder, the accuracies, the report and then the metrics, on the main process."""
    run, stream, progress, accelerator = work.run, work.stream, work.progress, work.accelerator
    settings, data, started = run.settings, stream.data, time.perf_counter()
    if not accelerator.is_main_process:
        return
    model = stage.scored()
    save_encoder(model.encoder, run.path / ENCODER, mean=data.mean, std=data.std)
    if (head := part_of(model.top, ProjectionHead)) is not None:
        save_head(head, run.path / HEAD)
    matrices = {"class_il": progress.class_il, "task_il": progress.task_il}
    scores = {name: {kind: score(rows) for kind, rows in matrices.items()} for name, score in SCORES.items()}
    record = {
        "method": settings.method,
        "scenario": settings.scenario,
        "tasks": [[data.class_names[label] for label in task] for task in stream.tasks],
        **matrices,
        **scores,
        "settings": computed(settings),
    }
    write_atomic(run.path / CONTINUAL, json.dumps(record, indent=2, allow_nan=False) + "\n")
    if report is not None:
        try:
            report(run.path)
        except Exception as error:  # of a template: the scores are written
            note(f"the report was not written: {error!r}")
    losses = history.losses(stage.number)
    metrics: dict[str, Any] = {
        **{
            f"{name}/{kind}": value
            for name, kinds in scores.items()
            for kind, value in kinds.items()
            if value is not None
        },
        "train/final_loss": mean(losses[-stage.steps_per_epoch :]),
        "train/steps": stage.last_step,
        "tasks": len(stream.tasks),
        **({"replaced_images": work.replaced} if settings.broken_images == "replace" else {}),
        "seconds/total": 0.0,
        **{name: getattr(settings, name) for name in ("seed", "method", "scenario", "data", "batch_size")},
        "buffer_size": settings.buffer_size if settings.replayed else 0,
        "processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        **environment(accelerator.device),
    }
    metrics["seconds/total"] = round(seconds + time.perf_counter() - started, 1)
    run.write_metrics(metrics)  # a run with metrics is complete
    history.log({name: metrics[name] for name in metrics if name.startswith(tuple(SCORES))}, stage.last_step)


def _average_accuracy(rows: Matrix) -> float:
    return average_accuracy(np.array(rows, dtype=float))


def _forgetting(rows: Matrix) -> float | None:
    """Return the forgetting, or None for tasks that were trained all at once."""
    return None if rows[0][0] is None else forgetting(np.array(rows, dtype=float))


SCORES = {"average_accuracy": _average_accuracy, "forgetting": _forgetting}
