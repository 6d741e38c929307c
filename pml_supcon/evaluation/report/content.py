"""The content of an evaluation, as a check of it."""

from collections.abc import Callable, Mapping
from typing import Any

from pml_supcon.evaluation.report.check import count, fields, instance, list_of, map_of, maybe, number, one_of, plain

share, above_zero = number(0, 1), number(0)
text, truth = instance(str, "a text"), instance(bool, "true or false")
shares = map_of(maybe(share))
probe = fields({"top1": share, "top5": share})
calibrated = fields({"ece": share, "classwise_ece": share, "nll": above_zero, "brier": number(0, 2)})
bins = list_of(
    fields({"low": share, "high": share, "count": count, "confidence": maybe(share), "accuracy": maybe(share)})
)
curve = list_of(fields({"share": share, "images": count, "top1": share, "top5": share}))
severities = list_of(fields({"severity": count, "accuracy": share, "ece": share}))
hardness = list_of(
    fields(
        {"hardness": number(), "share": maybe(share), "count": number(0)},
        {"even_share": maybe(share), "ratio": maybe(above_zero)},
    )
)
DATA = fields(
    {"spec": text, "classes": list_of(text), "train": count, "test": count, "image_size": count, "in_chans": count}
)


def _section_checks(classes: list[str]) -> dict[str, Callable[[Any, str], None]]:
    """The check of each section, which knows the names of the classes."""

    def class_metrics(value: Any, where: str) -> None:
        if "queries" not in value:
            raise ValueError(f"Expected `{where}` to have the key 'queries', but got {list(value)}.")
        count(value["queries"], f"{where}.queries")
        shares({name: item for name, item in value.items() if name != "queries"}, where)

    index = fields({"name": text}, {"recall_at_k": map_of(share), "queries": count})
    label = one_of(*classes)
    neighbour = fields({"reference": count, "label": label, "right": truth, "similarity": number(-1, 1)})
    return {
        "retrieval": fields(
            {
                "metrics": map_of(number(-1, 1)),  # AMI is a little below 0 where chance does better
                "index": index,
                "queries": count,
                "references": count,
                "lone_queries": count,
                "zero_rows": count,
                "per_class": map_of(class_metrics, classes),
            }
        ),
        "linear_probe": fields(
            {
                "metrics": probe,
                "inverse_l2": above_zero,
                "tried": map_of(maybe(share)),
                "per_class": map_of(maybe(share), classes),
            },
            {
                "augmented": fields({"optimizer": text, "epochs": count, "metrics": shares}, {"learning_curve": curve}),
                "learning_curve": curve,
                "few_shot": list_of(
                    fields({"shots": count, "draws": count, "accuracy": share, "low": number(), "high": number()})
                ),
            },
        ),
        "calibration": fields(
            {
                "bins": count,
                "temperature": above_zero,
                "before": calibrated,
                "after": calibrated,
                "reliability": fields({"before": bins, "after": bins}),
            }
        ),
        "corruption": fields(
            {
                "strengths": one_of("32", "224"),
                "clean": fields({"accuracy": share, "ece": share}),
                "corruptions": map_of(severities),
                "by_severity": severities,
                "mean_error": share,
                "mean_corruption_error": maybe(above_zero),
                "baseline": maybe(text),
            },
            {"images": count},
        ),
        "projection_head": fields(
            {"tasks": map_of(fields({"encoder": share, "head": maybe(share), "chance": share}))},
            {"images": count, "test_images": count},
        ),
        "hard_mining": fields(
            {"losses": map_of(fields({"positives": hardness, "negatives": hardness}, {"summary": plain}))},
            {"of": one_of("encoder", "head"), "temperature": above_zero, "margin": above_zero}
            | {"batches": count, "batch_size": count},
        ),
        "transfer": list_of(
            fields(
                {
                    "data": text,
                    "linear_probe": probe,
                    "knn_accuracy": share,
                    "classes": count,
                    "train": count,
                    "test": count,
                }
            )
        ),
        "gallery": list_of(fields({"query": count, "label": label, "score": share, "neighbours": list_of(neighbour)})),
        "map": fields(
            {
                "methods": map_of(list_of(list_of(number(), 2)), ["pca", "tsne", "umap"]),
                "indices": list_of(count),
                "labels": list_of(count),
            }
        ),
    }


def check_content(content: Mapping[str, Any]) -> None:
    """Raise unless an evaluation has the keys that a report shows, and finite values in their ranges.

    Args:
        content: what `evaluation.json` holds.

    Raises:
        TypeError: a value has the wrong type; the message names its place.
        ValueError: a key is unknown or missing, or a value not finite or out of its range.

    Examples:
        >>> check_content({"title": "a run"})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: Expected `the evaluation` to have the keys ['title', ...], but got no key 'encoder', ...
    """
    parts = {"title": text, "encoder": text, "data": DATA, "about": map_of(plain), "notes": list_of(text)}
    fields({**parts, "sections": map_of(lambda value, where: None)})(content, "")
    fields({}, _section_checks(list(content["data"]["classes"])))(content["sections"], "sections")
    if "map" in content["sections"]:
        _check_map(content["sections"]["map"], len(content["data"]["classes"]))


def _check_map(found: Mapping[str, Any], classes: int) -> None:
    sizes = {name: len(points) for name, points in found["methods"].items()} | {"labels": len(found["labels"])}
    for name, size in sizes.items():
        if size != len(found["indices"]):
            raise ValueError(
                f"Expected `sections.map.{name}` to have one item per index, {len(found['indices'])}, but got {size}."
            )
    for label in found["labels"]:
        if label >= classes:
            raise ValueError(f"Expected `sections.map.labels` to be below {classes}, the classes, but got {label}.")
