"""What a run shows: the loss curve, a map of the embeddings, a gallery of queries, the summary table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from torch import Tensor

MAP_POINTS = 2000
GALLERY_QUERIES, GALLERY_NEIGHBOURS = 10, 8


def draw_loss_curve(losses: Sequence[float], steps_per_epoch: int, path: Path) -> None:
    """The loss of every step, against epochs."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.arange(1, len(losses) + 1) / steps_per_epoch, losses, linewidth=1)
    axes.set(xlabel="epoch", ylabel="training loss")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def draw_embedding_map(embeddings: Tensor, labels: Tensor, class_names: Sequence[str], path: Path, seed: int) -> None:
    """A t-SNE map of embeddings `(N, D)`, coloured by class; a random part of them where there are many."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:MAP_POINTS]
    points = embeddings[order].numpy()
    if min(points.shape) > 2:
        perplexity = min(30.0, (len(points) - 1) / 3)
        flat = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)
    else:  # too few for a map of neighbourhoods
        flat = np.pad(points[:, :2], ((0, 0), (0, max(0, 2 - points.shape[1]))))
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    named = len(class_names) <= 20
    colours = matplotlib.colormaps["tab10" if len(class_names) <= 10 else "nipy_spectral"]
    for index, name in enumerate(class_names):
        chosen = (labels[order] == index).numpy()
        place = index if len(class_names) <= 10 else index / (len(class_names) - 1)
        axes.scatter(flat[chosen, 0], flat[chosen, 1], s=12, color=colours(place), label=name if named else None)
    axes.set(xticks=[], yticks=[], title=f"{len(points)} test embeddings (t-SNE)")
    if named:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=120)


def draw_gallery(
    test: tuple[Any, Tensor, Tensor],
    train: tuple[Any, Tensor, Tensor],
    class_names: Sequence[str],
    path: Path,
    *,
    own: bool = False,
) -> None:
    """Test images with their nearest training images, those whose neighbours agree least with them first.

    Args:
        test: images (a data set of `(image, label)`), normalised embeddings `(N, D)` and labels `(N,)` of the queries.
        train: the same of the images among which neighbours are sought.
        class_names: the names of the classes.
        path: the file to write.
        own: the queries are sought among each other, and none finds itself.
    """
    images, queries, labels = test
    references, reference_embeddings, reference_labels = train
    shown = min(GALLERY_NEIGHBOURS, len(reference_labels) - int(own))
    nearest = []
    for rows in torch.arange(len(queries)).split(1024):
        similarity = queries[rows] @ reference_embeddings.T
        if own:
            similarity[torch.arange(len(rows)), rows] = -torch.inf
        nearest.append(similarity.topk(shown).indices)
    neighbours = torch.cat(nearest)
    agreeing = (reference_labels[neighbours] == labels[:, None]).float().mean(dim=1)
    rows = agreeing.argsort(stable=True)[:GALLERY_QUERIES].tolist()
    figure = Figure(figsize=(1.3 * (shown + 1), 1.5 * len(rows)))
    axes = figure.add_axes((0, 0, 1, 1))  # one for all panels: each costs more time than its image
    axes.set_axis_off()
    for row, query in enumerate(rows):
        truth = int(labels[query])
        show(axes, images[query][0], (0, row), f"query: {class_names[truth]}", "black")
        for column, neighbour in enumerate(neighbours[query].tolist(), start=1):
            found = int(reference_labels[neighbour])
            colour = "green" if found == truth else "red"
            show(axes, references[neighbour][0], (column, row), class_names[found], colour)
    axes.set(xlim=(-0.5, shown + 0.5), ylim=(len(rows) - 0.4, -0.6), aspect="auto")
    figure.savefig(path, dpi=110)


def show(axes: Any, image: Any, place: tuple[int, int], title: str, colour: str) -> None:
    """One image, a PIL image or a uint8 tensor `(C, H, W)`, at a column and row, with a coloured title."""
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


def summary_table(rows: Mapping[str, Any]) -> str:
    """Names and values, aligned, between rules."""
    texts = {name: f"{value:.4f}" if isinstance(value, float) else str(value) for name, value in rows.items()}
    left, right = max(map(len, texts)), max(map(len, texts.values()))
    rule = "-" * (left + right + 2)
    return "\n".join([rule, *(f"{name:<{left}}  {text:>{right}}" for name, text in texts.items()), rule])
