"""The pictures of a run: the loss curve, the map of the embeddings, the gallery; and its summary table."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor

from pml_supcon._files import write_atomic
from pml_supcon.metrics.embedding_maps import MIN_ROWS, embedding_map
from pml_supcon.metrics.gallery import worst_queries

GALLERY_QUERIES, GALLERY_NEIGHBOURS = 10, 8


def draw_loss_curve(losses: Sequence[float], steps_per_epoch: int, path: Path) -> None:
    """Draw the loss of every step over epochs."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.arange(1, len(losses) + 1) / steps_per_epoch, losses, linewidth=1)
    axes.set(xlabel="epoch", ylabel="training loss")
    axes.grid(alpha=0.3)
    save(figure, path, dpi=120)


def draw_embedding_map(embeddings: Tensor, labels: Tensor, class_names: Sequence[str], path: Path, seed: int) -> None:
    """Draw a t-SNE map of embeddings ``(N, D)``; PCA if there are too few rows for t-SNE.

    Points are coloured by class, ``labels`` int64 ``(N,)``, or on a scale of numbers, float ``(N,)``.
    """
    method = "tsne" if len(embeddings) >= MIN_ROWS else "pca"
    result = embedding_map(embeddings, methods=[method], seed=seed)
    flat, shown = result.coordinates[method], labels[torch.from_numpy(result.rows)]
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    named = 0 < len(class_names) <= 20
    if labels.is_floating_point():
        figure.colorbar(axes.scatter(flat[:, 0], flat[:, 1], s=12, c=shown.numpy()), ax=axes)
    colours = matplotlib.colormaps["tab10" if len(class_names) <= 10 else "nipy_spectral"]
    for index in range(len(class_names)):
        chosen = (shown == index).numpy()
        place = index if len(class_names) <= 10 else index / (len(class_names) - 1)
        axes.scatter(flat[chosen, 0], flat[chosen, 1], s=12, color=colours(place), label=str(index))
    axes.set(xticks=[], yticks=[], title=f"{len(shown)} test embeddings ({'t-SNE' if method == 'tsne' else 'PCA'})")
    if named:
        legend = axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        for text, name in zip(legend.get_texts(), class_names, strict=True):
            text.set_text(name)  # now, because as a label a name that begins with "_" would be hidden
    save(figure, path, dpi=120)


def draw_gallery(
    test: tuple[Any, Tensor, Tensor],
    train: tuple[Any, Tensor, Tensor],
    class_names: Sequence[str],
    path: Path,
    *,
    own: bool = False,
) -> None:
    """Draw the worst test queries (see ``worst_queries``) with their nearest neighbours among the training images.

    ``test`` and ``train`` are the images (a data set of ``(image, label)``), embeddings ``(N, D)`` and labels ``(N,)``.
    With ``own``, the references are the queries, and no query retrieves itself.
    """
    images, queries, labels = test
    references, reference_embeddings, reference_labels = train
    worst = worst_queries(
        queries,
        labels,
        reference_embeddings,
        reference_labels,
        queries=GALLERY_QUERIES,
        neighbours=GALLERY_NEIGHBOURS,
        ref_includes_query=own,
    )
    if not len(worst.rows):
        return
    columns = worst.neighbours.shape[1]
    figure = Figure(figsize=(1.3 * (columns + 1), 1.5 * len(worst.rows)))
    axes = figure.add_axes((0, 0, 1, 1))  # one for all panels, because an axes takes longer to draw than an image
    axes.set_axis_off()
    for row, (query, neighbours) in enumerate(zip(worst.rows.tolist(), worst.neighbours.tolist(), strict=True)):
        truth = int(labels[query])
        show(axes, images[query][0], (0, row), f"query: {class_names[truth]}", "black")
        for column, neighbour in enumerate(neighbours, start=1):
            label = int(reference_labels[neighbour])
            colour = "green" if label == truth else "red"
            show(axes, references[neighbour][0], (column, row), class_names[label], colour)
    axes.set(xlim=(-0.5, columns + 0.5), ylim=(len(worst.rows) - 0.4, -0.6), aspect="auto")
    save(figure, path, dpi=110)


def show(axes: Any, image: Any, place: tuple[int, int], title: str, colour: str) -> None:
    """Draw a PIL image or uint8 tensor ``(C, H, W)`` at a column and row, with a coloured title."""
    pixels = image.permute(1, 2, 0).numpy() if isinstance(image, Tensor) else np.asarray(image)
    grey = pixels.ndim == 2 or pixels.shape[2] == 1
    (x, y), (height, width) = place, pixels.shape[:2]
    half = 0.45 * min(1.0, width / height), 0.4 * min(1.0, height / width)
    axes.imshow(
        pixels.squeeze() if grey else pixels,
        cmap="gray" if grey else None,
        extent=(x - half[0], x + half[0], y + half[1], y - half[1]),
        interpolation="nearest",
    )
    axes.text(x, y - half[1] - 0.04, title, fontsize=8, color=colour, ha="center", va="bottom")


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure whose texts are names: no formulas; characters that the font lacks are boxes."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=dpi))


def summary_table(rows: Mapping[str, Any]) -> str:
    """Return names and values as an aligned table between rules."""
    texts = {name: f"{value:.4f}" if isinstance(value, float) else str(value) for name, value in rows.items()}
    left, right = max(map(len, texts)), max(map(len, texts.values()))
    rule = "-" * (left + right + 2)
    return "\n".join([rule, *(f"{name:<{left}}  {text:>{right}}" for name, text in texts.items()), rule])
