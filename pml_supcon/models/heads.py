"""The small networks between the encoder's features and the contrastive loss: projection and prediction head."""

from torch import nn

from pml_supcon._checks import check_bool, check_int


class ProjectionHead(nn.Sequential):
    """A multi-layer perceptron from features (N, in_features) to embeddings (N, out_features).

    Linear layers with ReLU between them and none after the last. The output is not normalised: the losses normalise it.
    Khosla et al. (2020, section 3.1 and appendix) use two layers, 2,048 hidden units and 128 outputs, and discard the
    head after training.

    Args:
        in_features: width of the encoder's features, >= 1 (see ``feature_width``).
        out_features: width D of the embeddings, >= 1.
        hidden_features: width of the hidden layers, >= 1; None means ``in_features``. Unused with one layer.
        num_layers: number of linear layers, >= 1; 1 is a linear head.
        batch_norm: insert a BatchNorm1d (and no bias) between each hidden linear layer and its ReLU. In training mode
            it needs at least two rows, as every batch norm does.

    Raises:
        TypeError: If a width or ``num_layers`` is not an integer.
        ValueError: If a width or ``num_layers`` is below 1.

    Examples:
        >>> import torch
        >>> ProjectionHead(512, 128, hidden_features=2048)(torch.zeros(4, 512)).shape
        torch.Size([4, 128])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int = 128,
        *,
        hidden_features: int | None = None,
        num_layers: int = 2,
        batch_norm: bool = False,
    ) -> None:
        hidden = in_features if hidden_features is None else hidden_features
        check_int("in_features", in_features, low=1)
        check_int("out_features", out_features, low=1)
        check_int("hidden_features", hidden, low=1)
        check_int("num_layers", num_layers, low=1)
        check_bool("batch_norm", batch_norm)
        layers: list[nn.Module] = []
        width = in_features
        for _ in range(num_layers - 1):
            layers.append(nn.Linear(width, hidden, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(hidden))
            layers.append(nn.ReLU(inplace=True))
            width = hidden
        super().__init__(*layers, nn.Linear(width, out_features))


class PredictionHead(ProjectionHead):
    """A perceptron from embeddings (N, features) to predictions of the same width, after a projection head (NNCLR).

    Linear, BatchNorm1d, ReLU, Linear, as in Dwibedi et al. (ICCV 2021): its outputs are the ``predictions`` of
    ``losses.NearestNeighbourLoss``, its inputs the ``projections``. It is discarded after training.

    Args:
        features: width D of the embeddings, >= 1; 256 in the paper.
        hidden_features: width of the hidden layer, >= 1.
        batch_norm: insert the BatchNorm1d; without it the hidden layer has a bias.

    Raises:
        TypeError: If a width is not an integer.
        ValueError: If a width is below 1.

    Examples:
        >>> import torch
        >>> PredictionHead(256)(torch.zeros(4, 256)).shape
        torch.Size([4, 256])
    """

    def __init__(self, features: int, *, hidden_features: int = 4096, batch_norm: bool = True) -> None:
        check_int("features", features, low=1)
        super().__init__(features, features, hidden_features=hidden_features, batch_norm=batch_norm)
