"""The supervised contrastive losses L_out and L_in (Khosla et al., NeurIPS 2020, equations 2 and 3).

``problem`` checks the arguments. ``reference`` is the definition. ``dense`` computes the same in closed form for small
batches, ``tiled`` in linear memory, and ``triton`` in fused CUDA kernels.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from pml_supcon.functional.supcon.backends import BACKENDS, solve
from pml_supcon.functional.supcon.global_batch.group import group_supcon_loss
from pml_supcon.functional.supcon.options import SupConOptions
from pml_supcon.functional.supcon.problem import AnchorLosses, build_problem, check_batch
from pml_supcon.targets import Target

__all__ = ["supcon_loss", "group_supcon_loss", "AnchorLosses", "BACKENDS"]  # noqa: RUF022 - by importance


def supcon_loss(
    embeddings: Tensor,
    labels: Tensor | None = None,
    *,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ref_starts_with_batch: bool = False,
    indices_tuple: Sequence[Tensor] | None = None,
    anchors: Tensor | None = None,
    num_views: int | None = None,
    temperature: float | Tensor = 0.1,
    summation: str = "out",
    denominator: str = "all",
    contrast_mode: str = "all",
    positives_cap: int | None = None,
    margin: float = 0.0,
    class_balanced: bool = False,
    ignore_label: int | None = None,
    scale_by_temperature: bool = False,
    normalize: bool = True,
    similarity: Callable[[Tensor, Tensor], Tensor] | None = None,
    backend: str = "auto",
    products: str = "auto",
    target: Target | None = None,
) -> AnchorLosses:
    r"""Return the supervised contrastive loss of every anchor.

    With ``s_ij = z_i . z_j / temperature`` over L2-normalised rows, ``P(i)`` the other rows with the label of ``i``,
    and ``N(i)`` the rows with another label:

        out:  l_i = -1/|P(i)| * sum_{p in P(i)} [ s_ip - log D_ip ]              (equation 2)
        in:   l_i = -log( 1/|P(i)| * sum_{p in P(i)} exp(s_ip) / D_ip )          (equation 3)

    Args:
        embeddings: ``(N, D)`` floating point, view-major if ``num_views`` is given (the first view of every sample,
            then the second, ...: ``torch.cat`` of the views), or ``(B, V, D)``, which is read as ``N = V * B`` such
            rows. Sums and the loss are float32 for float16 and bfloat16 input, also under autocast; ``products`` says
            what products are.
        labels: ``(N,)``, or ``(B,)`` for ``(B, V, D)`` embeddings; any integer dtype. Labels on another device are
            copied to the device of ``embeddings``, and the host waits for no GPU (``ref_labels`` and ``indices_tuple``
            too). None: every sample is its own class (SimCLR); the views must then be known.
        ref_emb: ``(M, D)`` contrasted rows instead of the batch; none of them counts as the anchor itself.
        ref_labels: ``(M,)`` integers, the labels of ``ref_emb``.
        ref_starts_with_batch: the first N rows of ``ref_emb`` are the batch (its embeddings, or the embeddings of a
            momentum encoder), and further rows follow (a memory): anchor ``i`` is then not contrasted with row ``i``.
        indices_tuple: pairs ``(a1, p, a2, n)`` or triplets ``(a, p, n)`` of row indices, the output of PML's miners.
            ``P(i)`` and ``N(i)`` are then exactly these sets (a pair may be in both), and labels are not needed.
        anchors: bool mask of the anchors, ``(N,)``, or ``(B,)`` if the views are known; None: all rows. All rows are
            contrasted. The others have no loss, and are not valid.
        num_views: V of an ``(N, D)`` input; ``contrast_mode="one"``, ``positives_cap`` and missing labels need it.
        temperature: ``tau > 0``, at least 1.2e-38: a number, or a floating-point tensor of one value on the device of
            ``embeddings``, which then gets a gradient. Rows are divided by a tensor in float32, or float64.
        summation: "out" (the paper's recommendation) or "in".
        denominator: ``D_ip`` is the sum of ``exp(s_ia)`` over ``P(i)`` and ``N(i)`` for "all" (the paper), over ``p``
            and ``N(i)`` for "one_positive" (NT-Xent; SINCERE), over ``N(i)`` for "negatives" (the loss can then be
            negative).
        contrast_mode: "all": every row is an anchor; "one": the rows of the first view are anchors. All rows are
            contrasted.
        positives_cap: the largest number of positive rows besides the other views of the anchor's own sample, a
            multiple of V. The first other samples of the class in batch order are kept. A dropped positive is in no
            denominator either.
        margin: ``eps``, from 0 to 1000 in the unit of ``s``, only with "one_positive": the positive counts as
            ``exp(s_ip - eps)`` in ``D_ip`` (epsilon-SupInfoNCE). The loss is then at least ``-eps``. Not on "triton".
        class_balanced: divide each exponential in ``D_i`` by the number of contrasted rows of its class (for the
            anchor's class, of its kept positives): each class counts once (Balanced Contrastive Learning). Only with
            class labels and "all"; not on "triton".
        ignore_label: a class label that means "unlabelled": such a row is contrasted, and is a positive of nothing but
            the other views of its own sample, if the views are known. None: every label is a class, -1 too.
        scale_by_temperature: multiply the loss by ``temperature``, like the authors' code.
        normalize: divide rows by their L2 norm first.
        similarity: a function of ``(N, D)`` and ``(M, D)`` rows that returns ``(N, M)`` similarities. It replaces the
            dot product of (normalised) rows, and is divided by the temperature. Only on the backend "reference".
        backend: "auto", or one of ``BACKENDS`` by name.
        products: the precision of the products of rows. "float32": at least float32. "float16": normalised rows are
            rounded to float16 and multiplied in it, only on the backend "triton"; for float32 embeddings from a model
            that ran in 16 bits (Accelerate's mixed precision returns such). "auto": "float32", except on "triton" for
            embeddings of 16 bits, which are multiplied in float16 if they are normalised and in their dtype if not. A
            tensor as ``temperature`` makes "auto" "float32" and "float16" an error, because the host does not have its
            value; for normalised rows a ``losses.LearnableTemperature`` has a range, and counts as a number.
        target: None for class labels, or a target of ``pml_supcon.targets``, which says what labels are, and gives
            each positive a weight. Not with ``indices_tuple`` or ``positives_cap``; the backend "triton" has none.

    Returns:
        ``AnchorLosses(losses, valid)``, two ``(A,)`` tensors, A = B for ``contrast_mode="one"`` and N otherwise. An
        anchor is valid if it has a positive and a non-empty denominator; the loss and gradient of the others are 0.
        ``.mean()`` is the batch loss: the mean over valid anchors, 0 (with a graph) if there is none.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes, devices or values do not fit, or if the named backend does not support the arguments.
        IndexError: If ``indices_tuple`` has row numbers out of range.

    Note:
        Unlike PML 2.9's ``SupConLoss``, a batch without negatives has the paper's loss, not 0. Unlike the authors'
        code, anchors without a positive are not in the mean, and the loss is not scaled by a base temperature.

        Rows are not checked for NaN and infinity, which would synchronise. With ``normalize=False`` the loss can be
        finite beside infinite rows: a row in no pair is not used, and a similarity of minus infinity to a row that is
        not the only positive adds ``exp(-inf) = 0``. All other infinite or NaN similarities give no finite loss.

    Examples:
        >>> import torch
        >>> from pml_supcon.functional import supcon_loss
        >>> angles = torch.tensor([0.0, 0.3, 1.2, 2.5, 0.1, 0.5, 1.0, 2.2], dtype=torch.float64)
        >>> z = torch.stack([angles.cos(), angles.sin()], dim=1)
        >>> labels = torch.tensor([0, 0, 1, 0, 0, 0, 1, 0])
        >>> print(f"{supcon_loss(z, labels, temperature=0.5).mean():.9f}")
        2.359539547
    """
    options = SupConOptions(
        temperature=temperature,
        summation=summation,
        denominator=denominator,
        contrast_mode=contrast_mode,
        positives_cap=positives_cap,
        margin=margin,
        class_balanced=class_balanced,
        ignore_label=ignore_label,
        scale_by_temperature=scale_by_temperature,
        normalize=normalize,
        similarity=similarity,
        backend=backend,
        products=products,
        target=target,
    )
    problem = build_problem(
        check_batch(embeddings, labels, num_views, target),
        options,
        ref_emb=ref_emb,
        ref_labels=ref_labels,
        ref_starts_with_batch=ref_starts_with_batch,
        indices_tuple=indices_tuple,
        anchors=anchors,
    )
    return solve(problem)
