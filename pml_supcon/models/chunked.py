"""Cached gradients: a batch of any size through an encoder in chunks, with the gradient of the whole batch at once.

A contrastive loss needs the embeddings of the whole batch, but not the activations that led to them. Gao et al.
(2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup") therefore encode chunk by chunk
without keeping activations, take the gradient of the loss with respect to the embeddings, and encode each chunk again
to carry it on to the parameters. Here `torch.utils.checkpoint` does the second pass, within the one `backward()`.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint


class ChunkedEncoder(nn.Module):
    """An encoder whose training step holds the activations of one chunk at a time; value and gradient stay the same.

    The forward pass splits its input along B into the fewest chunks of at most `chunk_size`, of sizes that differ by
    at most one, and joins their embeddings. While training, a chunk's activations are dropped after its forward pass
    and made again in the backward pass: a third more work, since forward, forward and backward stand where forward and
    backward stood. Whatever loss follows sees all embeddings at once, and the gradient is that of the whole batch, up
    to rounding. In evaluation mode, or without gradients, chunks simply follow each other.

    - Random states and autocast are those of the first pass when a chunk is encoded again: dropout draws the same
      masks. Under autocast each chunk casts the weights for itself, so that the gradients of the chunks are summed in
      the weights' precision and not in half precision.
    - Batch statistics are those of a chunk. With BatchNorm the result is therefore not that of the whole batch but
      that of BatchNorm on small batches, and SyncBatchNorm joins the processes but not the chunks; it needs equally
      many chunks on every process. Running statistics count each chunk once. For equality use a norm without batch
      statistics (GroupNorm, LayerNorm).
    - Layers must give the same output when they are run again. One that draws on what its forward pass changed (the
      power iteration of spectral norm) does not.
    - In data-parallel training this module goes inside, `DistributedDataParallel(ChunkedEncoder(encoder))`: gradients
      are then reduced once per step.
    - The parameters are those of `encoder`, an attribute; in this module's `state_dict` their names begin with
      "encoder.". Save and load `chunked.encoder.state_dict()` and checkpoints fit the plain encoder.

    Args:
        encoder: takes a tensor (B, ...) and returns one with a row for each of the B, such as (B, D).
        chunk_size: rows of a chunk at most, >= 1. For views (B, V, C, H, W) a row is an image with all its views.

    Raises:
        TypeError: where `encoder` is not a module or `chunk_size` not an integer.
        ValueError: where `chunk_size` is below 1.

    Examples:
        >>> encoder = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Dropout(0.1), nn.Linear(16, 4))
        >>> ChunkedEncoder(encoder, chunk_size=64)(torch.randn(200, 8)).shape
        torch.Size([200, 4])
    """

    def __init__(self, encoder: nn.Module, chunk_size: int) -> None:
        super().__init__()
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"Expected argument `encoder` to be a torch.nn.Module, but got {type(encoder).__name__}")
        if not isinstance(chunk_size, int) or isinstance(chunk_size, bool):
            raise TypeError(f"Expected argument `chunk_size` to be an integer, but got {chunk_size!r}")
        if chunk_size < 1:
            raise ValueError(f"Expected argument `chunk_size` to be at least 1, but got {chunk_size}")
        self.encoder = encoder
        self.chunk_size = chunk_size

    def forward(self, x: Tensor) -> Tensor:
        """Encode (B, ...) chunk by chunk.

        A batch without rows passes through the encoder once, so that a process without rows still has all parameters
        in its graph, with gradients of zero; it leaves running statistics alone.

        Args:
            x: (B, ...), any dtype that the encoder takes, B >= 0.

        Returns:
            What the encoder returns for the whole of `x`, such as (B, D).

        Raises:
            TypeError: where the encoder returns something other than a tensor.
            ValueError: where `x` has no dimension B, or the encoder's output not one row for each of its input.
        """
        if x.ndim < 1:
            raise ValueError("Expected argument `x` to have shape (B, ...), but got a tensor without dimensions")
        if len(x) == 0:
            with _stand_in_statistics(self.encoder):
                return self._encode(x)
        chunks = x.tensor_split(-(-len(x) // self.chunk_size))
        if not (self.training and torch.is_grad_enabled()):
            return torch.cat([self._encode(chunk) for chunk in chunks])
        with _no_autocast_cache():
            return torch.cat([self._checkpointed(chunk) for chunk in chunks])

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"chunk_size={self.chunk_size}"

    def _checkpointed(self, chunk: Tensor) -> Tensor:
        encoded: Tensor = checkpoint(
            self._encode, chunk, use_reentrant=False, preserve_rng_state=True, context_fn=self._contexts
        )
        return encoded

    def _contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
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
    """Let batch and instance norms write their running statistics into copies, which are thrown away.

    Not `track_running_stats = False`: without running statistics a norm saves two tensors fewer for its backward pass,
    and the checkpoint, which hands saved tensors over by their number, refuses that. Nor are the statistics written
    back afterwards: the buffers themselves are never touched.
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
    finally:  # also when the checkpoint stops early, by an exception, once it has all that it needs
        for module, name, buffer in kept:
            setattr(module, name, buffer)


@contextmanager
def _no_autocast_cache() -> Iterator[None]:
    """Let each chunk cast the weights for itself.

    From one cast shared by all chunks the gradients of all chunks would come back, and be summed, in half precision.
    """
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)
