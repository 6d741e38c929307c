"""Nearest neighbours of past batches as positives: NNCLR (Dwibedi et al., ICCV 2021), also with labels."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from pml_supcon._checks import check_choice
from pml_supcon._layouts import flatten_views, split_views
from pml_supcon._pml import losses as _pml
from pml_supcon.functional.nearest_rows import nearest_rows
from pml_supcon.functional.supcon import checks
from pml_supcon.functional.supcon.problem import unit_rows
from pml_supcon.losses.row_queue import RowQueue
from pml_supcon.losses.supcon import check_default_options

Neighbours = Literal["nearest", "same_class", "positives"]


class NearestNeighbourLoss(RowQueue):
    r"""A contrastive loss whose positives are nearest neighbours in a queue of past batches: NNCLR.

        l_i = -log( exp(q_i . p_i / tau) / sum_k exp(q_i . p_k / tau) )

    ``q_i`` is the row of a queue nearest to the projection ``z_i`` of one view, by cosine, and a constant; ``p_i`` is
    the prediction of sample ``i`` from its other view: the output of a ``models.PredictionHead`` over the projection.
    The sum runs over the samples of the batch. The loss is the mean over the samples, and over both choices of the view
    that looks up its neighbour. After the loss, in training mode only, the projections of the first view replace the
    oldest rows of the queue. The gradient reaches the predictions, and through the predictor the projections.

    Args:
        loss: the loss of one direction: ``SupConLossOut`` or ``SupConLossIn`` with its temperature and backend, in the
            paper ``SupConLossOut(temperature=0.1)``. Its mean, or its ``reducer``, is taken in each direction.
        embedding_size: width D of projections and predictions, >= 1; 256 in the paper.
        queue_size: number of rows of the queue, at least the B samples of a batch; 98,304 in the paper.
        neighbours: "nearest": of all rows of the queue, as in the paper; labels are used for ``nn_accuracy`` alone.
            "same_class": nearest of the rows with the sample's label. "positives": likewise, and all predictions with
            the label in the batch are positives of ``q_i``, as in ``SupConLossOut`` with labels; still one row of the
            queue a sample, the nearest.
        dtype: of the queue. Rows of lower precision are converted to it; rows of higher precision raise. With float16
            or bfloat16 norms, the search and the loss are computed in float32.

    Attributes:
        nn_accuracy: In the last call, the share of the 2 B projections whose neighbour in the queue has their label, a
            scalar in [0, 1] on the device of the queue; None without labels, for an empty batch and for an empty queue.
            With "same_class" and "positives" this is the share of projections whose label is in the queue.

    Shape:
        - predictions: ``(B, 2, D)`` floating point, of two views; normalised inside.
        - labels: ``(B,)``, any integer dtype, on any device; None in all calls or in none.
        - projections: ``(B, 2, D)``, the input of the predictor; they get no gradient here.

    Raises:
        ValueError: If sizes, widths, dtypes or devices do not fit, if there are not two views, if a batch has more
            samples than the queue rows, if only some calls have labels, if ``neighbours`` needs labels, or if the loss
            has an option that does not apply: ``num_views``, ``positives_cap``, ``contrast_mode="one"``, ``target``,
            ``ignore_label``, an ``embedding_regularizer``, or a distance other than the cosine similarity.
        TypeError: If an argument has the wrong type.

    Note:
        A projection without a neighbour is its own neighbour, as a constant: ``q_i = z_i``. This is so for all in the
        first call, when the queue is empty (the paper fills it at random), and for samples whose class the queue does
        not have. ``state_dict`` is the one of ``QueueLoss``, with unit rows: a run that loads it continues exactly like
        an uninterrupted run. Memory is linear in B and in the queue, and a step does not synchronise with the device.
        Under ``GlobalBatchLoss`` the batch is the batch of all processes: each searches for all, they divide the pairs,
        and each keeps the same queue.

    Source:
        Dwibedi et al., *With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning of Visual
        Representations* (ICCV 2021), equation 3 and the pseudocode. The transposed term that the paper adds without an
        effect (its denominator sums over the neighbours) is left out. The paper has no labels.

    Examples:
        >>> import torch
        >>> from pml_supcon import losses, models
        >>> predictor = models.PredictionHead(4, hidden_features=16)
        >>> loss = losses.NearestNeighbourLoss(losses.SupConLossOut(temperature=0.1), embedding_size=4, queue_size=64)
        >>> for _ in range(3):
        ...     projections = torch.randn(8, 2, 4)
        ...     predictions = predictor(projections.flatten(0, 1)).view(8, 2, 4)
        ...     value = loss(predictions, projections=projections)
        >>> loss.num_filled
        24
    """

    takes_pairs = False

    def __init__(
        self,
        loss: nn.Module,
        embedding_size: int,
        queue_size: int,
        *,
        neighbours: Neighbours = "nearest",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(loss, embedding_size, queue_size, dtype)
        check_default_options(loss, "neighbours", ignore_label=None, embedding_regularizer=None)
        if _pml.similarity_of(self.loss.distance) != (True, None):
            raise ValueError(
                "Expected a loss with the cosine similarity, by which neighbours are searched, but got "
                f"{type(self.loss.distance).__name__}"
            )
        check_choice("neighbours", neighbours, get_args(Neighbours))
        self.neighbours = neighbours
        self.nn_accuracy: Tensor | None = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # else each position of the queue recompiles
    def forward(self, predictions: Tensor, labels: Tensor | None = None, *, projections: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar under PML's default reducer; see the class for shapes."""
        labels = self._check(predictions, labels, projections)
        # half precision is computed in float32; rows are rounded where they enter a queue of half precision
        dtype, number = torch.promote_types(self.queue_embeddings.dtype, torch.float32), len(predictions)
        # z (2 B, D): unit projections of both views, view-major, constant
        z = unit_rows(flatten_views(projections.detach().to(dtype)))
        # q (B, 2, D): the neighbours of both views
        q = split_views(self._neighbours(z, None if labels is None else labels.repeat(2)), 2)
        # s_ik = q_i . p_k / tau: the neighbours of a view, as anchors, against the predictions of the other view. The
        # positives of q_i are the predictions with its id: p_i alone, or all of its class.
        p = predictions.to(dtype)
        ids = torch.arange(number, device=p.device) if labels is None or self.neighbours != "positives" else labels
        one, other = (self.loss(q[:, v], ids, ref_emb=p[:, 1 - v], ref_labels=ids) for v in (0, 1))
        if self.training and number:
            self._enqueue(z[:number], labels)
        loss: Tensor = (one + other) / 2
        return loss

    def _neighbours(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Return the nearest row of the queue for each of the rows ``(N, D)``, or the row; update ``nn_accuracy``."""
        self.nn_accuracy = None
        if not self.num_filled:
            return z
        rows, row_labels = self.queue_embeddings[: self.num_filled], self.queue_labels[: self.num_filled]
        of_class = (None, None) if self.neighbours == "nearest" else (labels, row_labels)
        index, found = nearest_rows(z, rows, *of_class)
        if labels is not None and len(z):  # without a row of its label, the row of the index has another one
            self.nn_accuracy = (row_labels[index] == labels).float().mean()
        # copies, since the queue is written to afterwards; a NaN of a projection stays
        return torch.where(found[:, None] & ~z.isnan(), rows[index].to(z.dtype), z)

    def _check(self, predictions: Tensor, labels: Tensor | None, projections: Tensor) -> Tensor | None:
        """Return the labels as int64 on the device of the predictions, or raise if an argument does not fit."""
        for name, rows in (("predictions", predictions), ("projections", projections)):
            self._check_rows(name, rows)
            if rows.ndim != 3 or rows.shape[1] != 2:
                raise ValueError(
                    f"Expected argument `{name}` to hold two views, (B, 2, {self.embedding_size}), but got "
                    f"{tuple(rows.shape)}"
                )
        if projections.shape != predictions.shape:
            raise ValueError(
                f"Expected argument `projections` to have the shape of the predictions, {tuple(predictions.shape)}, "
                f"but got {tuple(projections.shape)}"
            )
        self._check_room(len(projections))
        if labels is None and self.neighbours != "nearest":
            raise ValueError(f"Expected `labels` with neighbours={self.neighbours!r}, but got None")
        self._check_labelled(labels)
        if labels is None:
            return None
        return checks.check_labels("labels", labels, len(predictions), predictions.device).detach().long()
