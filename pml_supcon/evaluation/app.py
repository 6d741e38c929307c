"""The program `evaluate.py`: score a frozen encoder and write a report. Usage: `recipes/evaluate.py`."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from pml_supcon._console import note, prepare_streams, say
from pml_supcon._extras import require_faiss, require_umap
from pml_supcon._files import write_atomic
from pml_supcon.data.broken import broken_images_listed, replace_broken
from pml_supcon.data.images import as_tensor
from pml_supcon.data.load import OpenedData, open_data
from pml_supcon.evaluation.cache import FeatureCache
from pml_supcon.evaluation.context import EvaluationContext
from pml_supcon.evaluation.loading import LoadedEncoder, load_trained_encoder
from pml_supcon.evaluation.report import write_report
from pml_supcon.evaluation.results import DataSummary, Evaluation, Pixels
from pml_supcon.evaluation.sections import Sections, choose_sections, run_sections
from pml_supcon.evaluation.sections.retrieval import reference_split
from pml_supcon.evaluation.sections.transfer import open_images as open_transfer
from pml_supcon.evaluation.settings import EvaluateSettings, parse_settings
from pml_supcon.training.environment import environment
from pml_supcon.training.launch import make_accelerator
from pml_supcon.training.pictures import summary_table
from pml_supcon.training.run import check_folder, check_writable, print_data_summary
from pml_supcon.training.signals import Stopped, exit_with_error

REPORT, RESULTS, COMPARED = "report.html", "evaluation.json", "evaluation-compared.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Load the encoders, evaluate them, and write the report."""
    prepare_streams()
    settings = parse_settings(arguments)
    try:
        require_faiss()
        # float32 regardless of the launcher, so that evaluations can be compared
        accelerator = make_accelerator("no")
        if "umap" in settings.map_methods:
            require_umap()
        for spec in settings.transfer:  # errors in them appear before the long computation
            with accelerator.main_process_first():  # one process downloads
                open_transfer(spec, settings)
        encoders = [load_trained_encoder(name) for name in (settings.encoder, settings.compare) if name is not None]
        output = settings.output or default_output(encoders[0], settings)
        check_writable(output)
        if settings.cache is not None:
            check_folder(settings.cache, "--cache")
        with broken_images_listed(lambda: open_all(encoders[0], settings), output, "start again"):
            contexts = [build_context(encoder, encoders[0], settings, output, accelerator) for encoder in encoders]
            evaluations = [evaluate(context) for context in contexts]
        if accelerator.is_main_process:
            write(output, [evaluation for evaluation in evaluations if evaluation is not None])
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        exit_with_error("evaluate.py", error)
    except Stopped as stopped:
        exit_with_error("evaluate.py", stopped, status=128 + stopped.number)
    accelerator.state.destroy_process_group()


def build_context(
    loaded: LoadedEncoder, first: LoadedEncoder, settings: EvaluateSettings, output: Path, accelerator: Accelerator
) -> EvaluationContext:
    """Build the context of an encoder on the data of the settings, by default the data of the first encoder's run."""
    with accelerator.main_process_first():  # one process downloads
        opened = open_labels(first, settings, loaded.image_size)
        print_data_summary(opened)
        levels, opened = opened.source.labels_are == "hierarchy", opened.at_finest_level()
        if settings.broken_images == "replace":
            opened = replace_broken(opened, output, write=accelerator.is_main_process)
        data = opened.decode()
    loaded.to(accelerator.device)
    cache = FeatureCache(settings.cache or folder_of(loaded) / "features") if settings.use_cache else None
    context = EvaluationContext(loaded, loaded.adapt_data(data), settings, accelerator, cache)
    if levels:
        context.note("The labels are a hierarchy: all sections score the classes of its finest level.")
    if opened.replaced:
        context.note(f"{opened.replaced} broken images: the next image of the class is read in place of each.")
    return context


def open_labels(first: LoadedEncoder, settings: EvaluateSettings, image_size: int | None = None) -> OpenedData:
    """Open the data of the settings, by default of the first encoder's run, without decoding images."""
    # the limits of the run apply to the data of the run
    own = first.run if settings.data in (None, first.run.get("data")) else {}
    spec = settings.data or own.get("data")
    if spec is None:
        raise ValueError(f"Expected --data, because {first.name} is not a run with data of its own, but got none")
    return open_data(
        spec,
        labels_are=settings.labels or own.get("labels", "classes"),
        image_size=settings.image_size or image_size,
        max_train=settings.max_train or own.get("max_train"),
        max_test=settings.max_test or own.get("max_test"),
        new_classes="some",
    )


def open_all(first: LoadedEncoder, settings: EvaluateSettings) -> list[OpenedData]:
    """Open all data sets of an evaluation without decoding images."""
    return [open_labels(first, settings), *(open_transfer(spec, settings) for spec in settings.transfer)]


def evaluate(context: EvaluationContext) -> Evaluation | None:
    """Run all sections; return the results on the main process, None on the others."""
    names = choose_sections(context)
    sections, seconds = run_sections(context, names)
    if not context.is_main:
        return None
    loaded, data = context.loaded, context.data
    about = environment(context.accelerator.device)
    about |= {"processes": context.accelerator.num_processes, "seed": context.settings.seed, **seconds}
    return Evaluation(
        title=f"{loaded.run['method'] if loaded.run else loaded.name} on {data.spec}",
        encoder=loaded.name,
        data=DataSummary(
            spec=data.spec,
            classes=list(data.class_names),
            labels=data.labels_are,
            train=len(data.train),
            test=len(data.test),
            image_size=data.image_size,
            in_chans=data.in_chans,
        ),
        about=about,
        notes=context.notes,
        sections=sections,
        pictures=collect_pictures(context, sections),
    )


def collect_pictures(context: EvaluationContext, sections: Sections) -> dict[str, dict[int, Pixels]]:
    """Return the images that the report shows, by split and row."""
    queries, points = sections.gallery or [], sections.map.indices if sections.map else []
    shown = {
        "test": {query.query for query in queries} | set(points),
        "train": {neighbour.reference for query in queries for neighbour in query.neighbours},
    }
    references = reference_split(context) if queries else "train"
    splits = {"test": context.data.test, "train": context.data.test if references == "test" else context.data.train}
    pictures: dict[str, dict[int, Pixels]] = {}
    for split, rows in shown.items():
        pictures[split] = {}
        for row in sorted(rows):
            try:
                pictures[split][row] = as_pixels(as_tensor(splits[split][row][0]))
            except Exception as error:  # the scores are computed: the file may have changed since
                context.note(f"The report has no picture of {split} image {row}: {error}")
                pictures[split][row] = np.zeros((1, 1), dtype=np.uint8)
    return pictures


def as_pixels(image: torch.Tensor) -> Pixels:
    """Convert a uint8 image ``(C, H, W)`` to ``(H, W)`` or ``(H, W, 3)``."""
    pixels: Pixels = image.permute(1, 2, 0).numpy()
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def write(output: Path, evaluations: Sequence[Evaluation]) -> None:
    """Write the JSON files and the report of one or two evaluations, and print their summaries."""
    output.mkdir(parents=True, exist_ok=True)
    (output / COMPARED).unlink(missing_ok=True)  # of an earlier evaluation
    write_results(output, evaluations)
    if missing := write_report(output / REPORT, evaluations):
        for sentence in missing:
            note(sentence)
            for evaluation in evaluations:
                evaluation.notes.append(sentence)
        write_results(output, evaluations)
    for evaluation in evaluations:
        say(summary_table({"encoder": evaluation.encoder, **main_scores(evaluation.sections)}))
        for sentence in evaluation.notes:
            say(f"note: {sentence}")
    say(f"report: {output / REPORT}")


def write_results(output: Path, evaluations: Sequence[Evaluation]) -> None:
    """Write the JSON files of one or two evaluations."""
    for name, evaluation in zip((RESULTS, COMPARED), evaluations, strict=False):
        write_atomic(output / name, json.dumps(evaluation.to_json(), indent=2, allow_nan=False) + "\n")


def main_scores(sections: Sections) -> dict[str, float]:
    """Return the main scores of an evaluation by name."""
    scores: dict[str, float] = {}
    if retrieval := sections.retrieval:
        scores |= {f"retrieval/{metric}": value for metric, value in retrieval.metrics.items()}
    if probe := sections.linear_probe:
        scores |= {f"linear_probe/{metric}": value for metric, value in probe.metrics.items()}
        scores |= {f"few_shot/{few['shots']}": few["accuracy"] for few in probe.few_shot}
    if calibration := sections.calibration:
        scores["calibration/ece"] = calibration.before["ece"]
        scores["calibration/ece_scaled"] = calibration.after["ece"]
    if corruption := sections.corruption:
        scores["corruption/mean_error"] = corruption.mean_error
        if corruption.mean_corruption_error is not None:
            scores["corruption/mean_corruption_error"] = corruption.mean_corruption_error
    if retrieval:
        recall = retrieval.index.get("recall_at_k", {})
        scores |= {f"index/recall_at_{k} of exact": value for k, value in recall.items()}
    return scores | {f"transfer/{other.data}": other.linear_probe["top1"] for other in sections.transfer or []}


def folder_of(loaded: LoadedEncoder) -> Path:
    """Return the folder for files of an encoder: its run, else `runs`."""
    return Path(loaded.name) if loaded.run else Path("runs")


def default_output(loaded: LoadedEncoder, settings: EvaluateSettings) -> Path:
    """Return `RUN/evaluation`, with settings other than the default in its name."""
    parts = ["evaluation"] if loaded.run else ["evaluation", Path(loaded.name).name]
    if settings.data is not None and settings.data != loaded.run.get("data"):
        parts.append(settings.data)
    parts += settings.sections
    if settings.compare is not None:
        parts.append(f"beside-{Path(settings.compare).name}")
    name = "-".join("".join(c if c.isalnum() or c in "-_." else "-" for c in part).strip("-.") for part in parts)
    return folder_of(loaded) / name


if __name__ == "__main__":
    main()
