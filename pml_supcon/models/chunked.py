"""Cached gradients: encode a batch of any size in chunks, with the gradient of the whole batch.

A contrastive loss needs the embeddings of the whole batch, but not the activations of the encoder. Gao et al.
(2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup") therefore encode chunk by chunk
without storing activations, compute the gradient of the loss with respect to the embeddings, and encode each chunk
again to propagate it to the parameters. Here ``torch.utils.checkpoint`` does the second pass within one ``backward()``.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from pml_supcon._checks import check_int, check_type
from pml_supcon._tensors import check_dense


class ChunkedEncoder(nn.Module):
    """An encoder that stores the activations of one chunk at a time; value and gradient stay the same.

    The forward pass splits its input along B into the fewest chunks of at most ``chunk_size``, of sizes that differ by
    at most one, and concatenates their embeddings. In training, the activations of a chunk are freed after its forward
    pass and recomputed in the backward pass: about a third more work, as a second forward pass comes on top of a
    forward and a backward pass. Any loss may follow, as it gets all embeddings at once; the gradient equals the
    gradient of the whole batch up to rounding. In evaluation mode, or without gradients, each chunk is encoded once.

    - The second pass restores the random state and autocast of the first: dropout draws the same masks. Under autocast
      each chunk casts the weights separately, so that the gradients of the chunks are summed in the precision of the
      weights, not in half precision.
    - Batch statistics are computed per chunk: BatchNorm acts as on small batches, not as on the whole batch.
      SyncBatchNorm combines the processes but not the chunks; it needs equally many chunks on every process. Running
      statistics count each chunk once. For equality use a norm without batch statistics (GroupNorm, LayerNorm).
    - Layers must return the same output in the second pass. A layer that depends on state which its forward pass
      changes (the power iteration of spectral norm) does not.
    - In data-parallel training, wrap this module: ``DistributedDataParallel(ChunkedEncoder(encoder))`` reduces
      gradients once per step.
    - In the ``state_dict`` of this module all names begin with "encoder.". Save and load
      ``chunked.encoder.state_dict()``, whose checkpoints fit the plain encoder.

    Args:
        encoder: maps a tensor (B, ...) to a tensor with B rows, such as (B, D).
        chunk_size: maximum rows of a chunk, >= 1. For views (B, V, C, H, W) a row is an image with all its views.

    Raises:
        TypeError: If ``encoder`` is not a module or ``chunk_size`` not an integer.
        ValueError: If ``chunk_size`` is below 1.

    Examples:
        >>> encoder = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Dropout(0.1), nn.Linear(16, 4))
        >>> ChunkedEncoder(encoder, chunk_size=64)(torch.randn(200, 8)).shape
        torch.Size([200, 4])
    """

    def __init__(self, encoder: nn.Module, chunk_size: int) -> None:
        super().__init__()
        check_type("encoder", encoder, nn.Module, "a torch.nn.Module")
        self.chunk_size = check_int("chunk_size", chunk_size, low=1)
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        """Encode (B, ...) chunk by chunk.

        An empty batch passes through the encoder once, so that a process without rows has all parameters in its graph,
        with gradients of zero; running statistics do not change.

        Args:
            x: (B, ...), any dtype that the encoder accepts, B >= 0.

        Returns:
            The output of the encoder for ``x``, such as (B, D).

        Raises:
            TypeError: If the encoder does not return a tensor.
            ValueError: If ``x`` has no dimension B, or the encoder does not return B rows.
        """
        check_dense("x", x, values=False)
        if x.ndim < 1:
            raise ValueError("Expected argument `x` to have shape (B, ...), but got a tensor without dimensions")
        if len(x) == 0:
            with _stand_in_statistics(self.encoder):
                return self._encode(x)
        chunks = x.tensor_split(-(-len(x) // self.chunk_size))
        if not (self.training and torch.is_grad_enabled()):
            return torch.cat([self._encode(chunk) for chunk in chunks])
        # Each chunk casts the weights itself: a shared cast would sum the gradients of the chunks in half precision.
        cache_enabled = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            return torch.cat(
                [checkpoint(self._encode, chunk, use_reentrant=False, context_fn=self._contexts) for chunk in chunks]
            )
        finally:
            torch.set_autocast_cache_enabled(cache_enabled)

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"chunk_size={self.chunk_size}"

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return the contexts of the first and the second forward pass."""
        return nullcontext(), _stand_in_statistics(self.encoder)

    def _encode(self, chunk: Tensor) -> Tensor:
        encoded = self.encoder(chunk)
        if not isinstance(encoded, Tensor):
            raise TypeError(f"Expected the encoder to return a tensor, but got {type(encoded).__name__}")
        if encoded.shape[:1] != chunk.shape[:1]:
            raise ValueError(
                f"Expected the encoder to return one row for each of the {len(chunk)} of its input "
                f"{tuple(chunk.shape)}, but got {tuple(encoded.shape)}"
            )
        return encoded


@contextmanager
def _stand_in_statistics(encoder: nn.Module) -> Iterator[None]:
    """Let batch and instance norms update copies of their running statistics, and discard the copies.

    ``track_running_stats = False`` does not work: without running statistics a norm saves two tensors fewer for its
    backward pass, and the checkpoint, which matches saved tensors by their number, raises. Restoring old values does
    not work either for code that holds the buffers: they must never change.
    """
    kept = [
        (module, name, buffer)
        for module in encoder.modules()
        if isinstance(module, _NormBase) and module.training
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        for module, name, buffer in kept:
            setattr(module, name, buffer.clone())
        yield
    finally:  # the checkpoint stops early by an exception once it has all tensors
        for module, name, buffer in kept:
            setattr(module, name, buffer)
