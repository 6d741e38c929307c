r"""Score a frozen encoder in all the ways of the paper, and write a report: one HTML file and its figures as JSON.

    accelerate launch --quiet recipes/evaluate.py runs/mine                         # a run of train.py, on its own data
    accelerate launch --quiet recipes/evaluate.py runs/mine --compare runs/other    # two runs side by side
    accelerate launch --quiet recipes/evaluate.py my/encoder --data imagefolder:my/images
    accelerate launch --quiet recipes/evaluate.py resnet50.a1_in1k --data hf:cifar10 --sections retrieval,linear_probe
    accelerate launch --quiet recipes/evaluate.py runs/mine --transfer torchvision:SVHN,torchvision:DTD
    ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 recipes/evaluate.py runs/mine

Retrieval, linear probes with all labels and with few, calibration, corruptions, what the projection head throws away,
where the gradient goes, transfer. Features are computed on all processes, once, and kept: a second evaluation reads
them. `--help` lists the settings; the page of the docs says how to read the report.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from pml_supcon._extras import require_faiss, require_umap
from pml_supcon._files import write_atomic
from pml_supcon.data.images import ImageData, as_tensor
from pml_supcon.data.load import open_data
from pml_supcon.evaluation.cache import FeatureCache
from pml_supcon.evaluation.context import EvaluationContext
from pml_supcon.evaluation.loading import LoadedEncoder, load_trained_encoder
from pml_supcon.evaluation.report import Evaluation, write_report
from pml_supcon.evaluation.sections import choose_sections, run_sections
from pml_supcon.evaluation.sections.retrieval import gallery_split
from pml_supcon.evaluation.sections.transfer import open_images as open_transfer
from pml_supcon.evaluation.settings import EvaluateSettings, parse_settings
from pml_supcon.training.environment import environment
from pml_supcon.training.launch import GROUP_TIMEOUT, make_accelerator
from pml_supcon.training.pictures import summary_table
from pml_supcon.training.run import check_writable
from pml_supcon.training.signals import Stopped, exit_with_error

REPORT, FIGURES, COMPARED = "report.html", "evaluation.json", "evaluation-compared.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Open, score, report."""
    settings = parse_settings(arguments)
    try:
        require_faiss()
        # in float32 whatever the launcher says: figures of two evaluations are to be compared
        accelerator = make_accelerator("no", GROUP_TIMEOUT)
        if "umap" in settings.map_methods:
            require_umap()
        for spec in settings.transfer:  # what is wrong with them shows before the long work
            with accelerator.main_process_first():  # one process downloads
                open_transfer(spec, settings)
        encoders = [load_trained_encoder(name) for name in (settings.encoder, settings.compare) if name is not None]
        output = settings.output or default_output(encoders[0], settings)
        if output.exists() and not output.is_dir():
            raise NotADirectoryError(f"Expected --output to be a folder, but {output} is a file")
        check_writable(output)
        contexts = [build_context(encoder, encoders[0], settings, accelerator) for encoder in encoders]
        found = [(context, evaluate(context)) for context in contexts]
        write(output, [(context, content) for context, content in found if content is not None])
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        exit_with_error("evaluate.py", error)
    except Stopped as stopped:
        exit_with_error("evaluate.py", stopped, status=128 + stopped.number)
    accelerator.state.destroy_process_group()


def build_context(
    loaded: LoadedEncoder, first: LoadedEncoder, settings: EvaluateSettings, accelerator: Accelerator
) -> EvaluationContext:
    """An encoder on the data that is named, else on that of the first encoder's run."""
    data = open_images(loaded, first, settings, accelerator)
    loaded.to(accelerator.device)
    cache = FeatureCache(settings.cache or home_of(loaded) / "features") if settings.use_cache else None
    return EvaluationContext(loaded, loaded.adapt_data(data), settings, accelerator, cache)


def open_images(
    loaded: LoadedEncoder, first: LoadedEncoder, settings: EvaluateSettings, accelerator: Accelerator
) -> ImageData:
    """The images, at the size that the encoder sees."""
    own = first.run if settings.data in (None, first.run.get("data")) else {}
    spec = settings.data or own.get("data")
    if spec is None:
        raise ValueError(
            f"Expected --data, since {first.name} is no run that says what it was trained on, but got none"
        )
    with accelerator.main_process_first():  # one process downloads
        return open_data(
            spec,
            image_size=settings.image_size or loaded.image_size,
            max_train=settings.max_train or own.get("max_train"),
            max_test=settings.max_test or own.get("max_test"),
            new_classes="some",
        ).decode()


def evaluate(context: EvaluationContext) -> dict[str, Any] | None:
    """Run all sections; what `evaluation.json` holds on the main process, None on others."""
    names = choose_sections(context)
    sections, seconds = run_sections(context, names)
    if not context.is_main:
        return None
    loaded, data = context.loaded, context.data
    return {
        "title": f"{loaded.run['method']} on {data.spec}" if loaded.run else f"{loaded.name} on {data.spec}",
        "encoder": loaded.name,
        "data": {
            "spec": data.spec,
            "classes": list(data.class_names),
            "train": len(data.train),
            "test": len(data.test),
            "image_size": data.image_size,
            "in_chans": data.in_chans,
        },
        "about": {
            **environment(context.accelerator.device),
            "processes": context.accelerator.num_processes,
            "seed": context.settings.seed,
            **seconds,
        },
        "notes": context.notes,
        "sections": {name: section for name, section in sections.items() if section is not None},
    }


def pictures(context: EvaluationContext, sections: dict[str, Any]) -> dict[str, dict[int, np.ndarray[Any, Any]]]:
    """The images that the report shows, by split and place in it."""
    worst = sections.get("gallery", [])
    shown = {
        "test": {query["query"] for query in worst} | set(sections.get("map", {}).get("indices", [])),
        "train": {each["reference"] for query in worst for each in query["neighbours"]},
    }
    among = gallery_split(context) if worst else "train"
    splits = {"test": context.data.test, "train": context.data.test if among == "test" else context.data.train}
    return {
        split: {index: as_pixels(as_tensor(splits[split][index][0])) for index in sorted(indices)}
        for split, indices in shown.items()
    }


def as_pixels(image: torch.Tensor) -> np.ndarray[Any, Any]:
    """A uint8 image `(C, H, W)` as `(H, W)` or `(H, W, 3)`."""
    pixels: np.ndarray[Any, Any] = image.permute(1, 2, 0).numpy()
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def write(output: Path, found: Sequence[tuple[EvaluationContext, dict[str, Any]]]) -> None:
    """Leave the figures and the report of one evaluation or two, print the summary; without any, do nothing."""
    if not found:
        return
    output.mkdir(parents=True, exist_ok=True)
    (output / COMPARED).unlink(missing_ok=True)  # of an earlier evaluation
    for name, (_, content) in zip((FIGURES, COMPARED), found, strict=False):  # first: the report is made of them
        write_atomic(output / name, json.dumps(content, indent=2, allow_nan=False) + "\n")
    write_report(
        output / REPORT, [Evaluation(content, pictures(context, content["sections"])) for context, content in found]
    )
    for _, content in found:
        print(summary_table({"encoder": content["encoder"], **summary_of(content["sections"])}))
        print("".join(f"note: {sentence}\n" for sentence in content["notes"]), end="")
    print(f"report: {output / REPORT}")


def summary_of(sections: dict[str, Any]) -> dict[str, float]:
    """The figures that stand for an evaluation, by name."""
    found: dict[str, Any] = {}
    for name in ("retrieval", "linear_probe"):
        found |= {f"{name}/{metric}": value for metric, value in sections.get(name, {}).get("metrics", {}).items()}
    for few in sections.get("linear_probe", {}).get("few_shot", []):
        found[f"few_shot/{few['shots']}"] = few["accuracy"]
    if "calibration" in sections:
        found["calibration/ece"] = sections["calibration"]["before"]["ece"]
        found["calibration/ece_scaled"] = sections["calibration"]["after"]["ece"]
    if "corruption" in sections:
        found["corruption/mean_error"] = sections["corruption"]["mean_error"]
        if sections["corruption"]["mean_corruption_error"] is not None:
            found["corruption/mean_corruption_error"] = sections["corruption"]["mean_corruption_error"]
    index = sections.get("retrieval", {}).get("index", {})
    found |= {f"index/recall_at_{k} of exact": value for k, value in index.get("recall_at_k", {}).items()}
    for other in sections.get("transfer", []):
        found[f"transfer/{other['data']}"] = other["linear_probe"]["top1"]
    return found


def home_of(loaded: LoadedEncoder) -> Path:
    """Where what belongs to an encoder lies: its run, else `runs`."""
    return Path(loaded.name) if loaded.run else Path("runs")


def default_output(loaded: LoadedEncoder, settings: EvaluateSettings) -> Path:
    """`RUN/evaluation`, with what is not as usual in its name; it is written anew each time."""
    parts = ["evaluation"]
    if not loaded.run:
        parts.append(Path(loaded.name).name)
    if settings.data is not None and settings.data != loaded.run.get("data"):
        parts.append(settings.data)
    if settings.sections:
        parts += settings.sections
    if settings.compare is not None:
        parts.append(f"beside-{Path(settings.compare).name}")
    name = "-".join("".join(c if c.isalnum() or c in "-_." else "-" for c in part).strip("-.") for part in parts)
    return home_of(loaded) / name


if __name__ == "__main__":
    main()
