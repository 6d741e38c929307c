"""Relation distillation of Co2L (Cha, Lee, Shin, ICCV 2021): keep the similarities between rows of a past model.

``reference`` is the definition, dense. ``tiled`` computes the same in linear memory.
"""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from pml_supcon._checks import check_bool, check_choice, check_temperature, check_type
from pml_supcon._layouts import view_major_rows
from pml_supcon._tensors import check_dense
from pml_supcon.functional.relation_distillation import reference, tiled
from pml_supcon.functional.supcon import checks
from pml_supcon.functional.supcon.execution import scale_by_sqrt_temperature
from pml_supcon.functional.supcon.problem import AnchorLosses, unit_rows

__all__ = ["relation_distillation_loss", "checked_rows", "BACKENDS"]  # noqa: RUF022 - by importance

BACKENDS = ("tiled", "reference")


def relation_distillation_loss(
    embeddings: Tensor,
    past_embeddings: Tensor,
    *,
    temperature: float = 0.2,
    past_temperature: float = 0.01,
    normalize: bool = True,
    backend: str = "tiled",
    group: ProcessGroup | None = None,
) -> AnchorLosses:
    r"""Return the relation distillation loss of every row.

    The relations of row ``i`` are a softmax over its similarities to the other rows,

        p_ij(z, kappa) = exp(z_i . z_j / kappa) / sum_{k != i} exp(z_i . z_k / kappa)

    and the loss is the cross entropy of the present relations under the relations of a past model:

        l_i = -sum_{j != i} p_ij(past, kappa*) log p_ij(present, kappa)

    It is at least the entropy of the past relations, and equal to it with gradient 0 where the relations agree.

    Args:
        embeddings: ``(N, D)`` floating point, or ``(B, V, D)``, which is read as ``N = V * B`` view-major rows. Half
            precision is computed in float32, also under autocast.
        past_embeddings: ``(N, D')`` or ``(B, V, D')``, the same samples and views through the past model, on the same
            device. The width and the dtype may be others. They get no gradient, and are computed in the dtype of the
            loss.
        temperature: ``kappa > 0``, of the present rows.
        past_temperature: ``kappa* > 0``, of the past rows.
        normalize: divide all rows by their L2 norm first.
        backend: "tiled" (linear memory, any device, differentiable once) or "reference" (the definition, dense).
        group: processes that all call the function with the same batch, and divide its pairs ("reference" does not);
            the gradient of a process is its part of the gradient of the sum of the results of all processes.

    Returns:
        ``AnchorLosses(losses, valid)``, two ``(N,)`` tensors, losses >= 0. ``.mean()`` is the batch loss. A row without
        another row has the loss 0 and is not valid.

    Raises:
        TypeError: If an argument has the wrong type, or embeddings are not floating point.
        ValueError: If a temperature is out of range, or shapes or devices do not fit.

    Source:
        Cha et al., *Co2L: Contrastive Continual Learning* (ICCV 2021), equations 4 to 6. The paper takes two views of
        each sample and sums over rows; here the reducer decides, and the default is the mean.

    Examples:
        >>> import torch
        >>> from pml_supcon.functional import relation_distillation_loss
        >>> angles = torch.tensor([0.0, 0.3, 1.2, 2.5, 0.1, 0.5, 1.0, 2.2], dtype=torch.float64)
        >>> past = angles + 0.2 * (torch.arange(8) % 3).double()
        >>> z, z_past = (torch.stack([x.cos(), x.sin()], dim=1) for x in (angles, past))
        >>> print(f"{relation_distillation_loss(z, z_past, past_temperature=0.1).mean():.9f}")
        1.067322783
    """
    check_temperature("temperature", temperature)
    check_temperature("past_temperature", past_temperature)
    check_choice("backend", backend, BACKENDS)
    check_type("group", group, (ProcessGroup, type(None)), "a ProcessGroup or None")
    unit = unit_rows if check_bool("normalize", normalize) else lambda rows: rows
    rows, past = checked_rows(embeddings, past_embeddings)
    # scale both, (N, D) and (N, D'), so that the products of rows are z_i . z_j / kappa
    dtype = torch.promote_types(rows.dtype, torch.float32)
    rows = scale_by_sqrt_temperature(unit(rows.to(dtype)), float(temperature))
    past = scale_by_sqrt_temperature(unit(past.to(dtype)), float(past_temperature))
    if backend == "reference":
        return reference.anchor_losses(rows, past)
    losses, valid, _ = tiled.tiled_losses(rows, past, *([] if group is None else [group]))
    return AnchorLosses(losses, valid)


def checked_rows(embeddings: Tensor, past_embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Return present and past embeddings as view-major rows, ``(N, D)`` and ``(N, D')``, the past ones detached.

    Raises:
        TypeError: If they are not floating-point tensors.
        ValueError: If their samples, views or devices differ.
    """
    for name, given in (("embeddings", embeddings), ("past_embeddings", past_embeddings)):
        checks.check_embeddings(name, given)
        check_dense(name, given)
    if past_embeddings.shape[:-1] != embeddings.shape[:-1]:
        expected = ", ".join([*map(str, embeddings.shape[:-1]), "any width"])
        raise ValueError(
            f"Expected `past_embeddings` to have shape ({expected}), the samples and views of `embeddings`, "
            f"but got {tuple(past_embeddings.shape)}"
        )
    if past_embeddings.device != embeddings.device:
        raise ValueError(
            f"Expected `past_embeddings` to be on the device of the embeddings, {embeddings.device}, "
            f"but got {past_embeddings.device}"
        )
    rows, past = (view_major_rows(given, None, None)[0] for given in (embeddings, past_embeddings.detach()))
    return rows, past
