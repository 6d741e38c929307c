"""The optional dependencies: imported in this one place, and only when something needs them."""

from importlib import import_module
from types import ModuleType

FAISS_COMMANDS = 'pip install "pml-supcon[cpu]" (CPU) or pip install "pml-supcon[cuda]" (NVIDIA GPU)'


def require_faiss() -> ModuleType:
    """Import FAISS, or say how to install it.

    Returns:
        The module ``faiss``, from ``faiss-cpu`` or ``faiss-gpu``.

    Raises:
        ImportError: If FAISS is not installed or cannot be loaded; the message holds the command that
            installs it.

    Example:
        >>> require_faiss().IndexFlatL2(2).d
        2
    """
    try:
        return import_module("faiss")
    except ImportError as error:
        raise ImportError(
            f"Nearest neighbours need FAISS, which could not be imported ({error}). Install it with {FAISS_COMMANDS}."
        ) from error
