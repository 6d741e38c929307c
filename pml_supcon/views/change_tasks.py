"""Tasks of telling how an image was changed."""

from pml_supcon.views.changes import Change, GaussianNoise, Grey, Rotation, Sobel


def transformation_tasks(*, in_chans: int, seed: int = 0) -> dict[str, tuple[Change | None, ...]]:
    """Name the tasks of telling how an image was changed: SimCLR's table 3, and the corruption as noise.

    Source: Chen et al., *A Simple Framework for Contrastive Learning of Visual Representations* (ICML 2020), section
    4.2, which probes colour or grey, rotation, original or corrupted, original or Sobel-filtered.

    Args:
        in_chans: 1 or 3; with 1 there is no "colour" task, as nothing changes.
        seed: Of the noise.

    Returns:
        For "colour" (2 variants), "rotation" (4), "corruption" (2) and "sobel" (2) the changes that make the variants;
        None is the image as it is.

    Raises:
        ValueError: If ``in_chans`` is neither 1 nor 3.

    Examples:
        >>> {task: len(variants) for task, variants in transformation_tasks(in_chans=1).items()}
        {'rotation': 4, 'corruption': 2, 'sobel': 2}
    """
    if in_chans not in (1, 3):
        raise ValueError(f"Expected argument `in_chans` to be 1 or 3, but got {in_chans!r}.")
    tasks: dict[str, tuple[Change | None, ...]] = {
        "colour": (None, Grey()),
        "rotation": (None, Rotation(90), Rotation(180), Rotation(270)),
        "corruption": (None, GaussianNoise(seed=seed)),
        "sobel": (None, Sobel()),
    }
    if in_chans == 1:
        del tasks["colour"]
    return tasks
