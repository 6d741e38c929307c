"""Run sections of `evaluate.py` on a finished training, for scores that its record lacks."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from pml_supcon.data.splits import split_training_set
from pml_supcon.evaluation.context import EvaluationContext, FeaturesError
from pml_supcon.evaluation.loading import load_trained_encoder
from pml_supcon.evaluation.sections import Sections, run_sections
from pml_supcon.evaluation.settings import EvaluateSettings
from pml_supcon.training.config import TrainSettings
from pml_supcon.training.digests import read_own, write_own
from pml_supcon.training.processes import on_main
from pml_supcon.training.run import open_images

HARDEST = (1, 5, 10, 25, 50, 100)  # per cent of the pairs


def evaluate_run(
    path: Path, trained: TrainSettings, options: Mapping[str, Any], accelerator: Accelerator
) -> dict[str, Any]:
    """Return an evaluation with its `sections`, `notes` and `seconds`; read it if the run's folder has it.

    Call it on all processes. Probes are fitted to the training images of the run, with correct labels.

    Args:
        path: The run's folder.
        trained: The settings of the run.
        options: Settings of the evaluation; ``sections`` names its sections.
        accelerator: The processes.
    """
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()
    file = path / f"evaluation-{digest[:12]}.json"
    if not broadcast_object_list([file.exists()])[0]:
        settings = EvaluateSettings(encoder=str(path), seed=trained.seed, workers=trained.workers, **options)
        loaded = load_trained_encoder(str(path)).to(accelerator.device)
        data = open_images(trained, accelerator, path).decode()
        split = split_training_set(data.train_labels, held_out=trained.held_out, label_noise=0.0, seed=trained.seed)
        data = loaded.adapt_data(replace(data, train=split.training_images(data)))
        context = EvaluationContext(loaded, data, settings, accelerator, cache=None)
        try:
            sections, seconds = run_sections(context, settings.sections)
        except (FloatingPointError, FeaturesError) as error:  # on all processes
            sections, seconds = Sections(), {}
            context.note(f"{', '.join(settings.sections)}: {error}")
        if accelerator.is_main_process:
            content = {"sections": sections.to_json(), "notes": context.notes, "seconds": seconds}
            write_own(file, content)
    return on_main(lambda: read_own(file, "Remove it to evaluate again"))


def share_of_hardest(bins: Sequence[Mapping[str, float]], part: float) -> float:
    """Return the share of the gradient on the hardest pairs; a bin that is split contributes in proportion.

    Args:
        bins: Bins of ``hard_mining_curve``: ``hardness``, ``share`` of the gradient, ``even_share`` of the pairs.
        part: The share of the pairs, in [0, 1].

    Examples:
        >>> easy = {"hardness": 0.1, "share": 0.2, "even_share": 0.8}
        >>> bins = [easy, {"hardness": 0.9, "share": 0.8, "even_share": 0.2}]
        >>> [round(share_of_hardest(bins, part), 3) for part in (0.1, 0.2, 0.6, 1.0)]
        [0.4, 0.8, 0.9, 1.0]
    """
    left, share = part, 0.0
    for each in sorted(bins, key=lambda each: -each["hardness"]):
        taken = min(left, each["even_share"])
        share += each["share"] * taken / each["even_share"] if each["even_share"] else 0.0
        left -= taken
    return share


def scores_in(sections: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores of evaluation sections by the names that experiments use."""
    scores: dict[str, float] = {}
    if section := sections.get("corruption"):
        levels = [{"severity": 0, **section["clean"]}, *section["by_severity"]]
        scores |= {
            f"corruption/{which}/{row['severity']}": row[which] for row in levels for which in ("accuracy", "ece")
        }
    if section := sections.get("projection_head"):
        for task, row in section["tasks"].items():
            scores |= {f"head/{task}/{side}": row[side] for side in ("encoder", "head") if row[side] is not None}
    if section := sections.get("hard_mining"):
        for loss, curve in section["losses"].items():
            for kind, row in curve["summary"].items():
                scores |= {f"hard_mining/{loss}/{kind}/{name}": value for name, value in row.items()}
                scores |= {
                    f"hard_mining/{loss}/{kind}/hardest/{percent}": share_of_hardest(curve[kind], percent / 100)
                    for percent in HARDEST
                }
    if section := sections.get("linear_probe"):
        scores[f"stage2/{options['probe_optimizer']}"] = section["augmented"]["metrics"]["top1"]
    for row in sections.get("transfer") or []:
        scores[f"transfer/{row['data']}"] = row["linear_probe"]["top1"]
    return scores
