"""Which processes hold the same batch, so that losses inside any wrapper can share out its work."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch.distributed import ProcessGroup

_group: ContextVar[ProcessGroup | None] = ContextVar("processes_with_this_batch", default=None)


def processes_with_this_batch() -> ProcessGroup | None:
    """The processes that compute the loss of one and the same batch at this moment; None: this one alone."""
    return _group.get()


@contextmanager
def batch_shared_by(group: ProcessGroup) -> Iterator[None]:
    """Our losses called in the block, by all processes of the group with the same batch, share out its work."""
    token = _group.set(group)
    try:
        yield
    finally:
        _group.reset(token)
