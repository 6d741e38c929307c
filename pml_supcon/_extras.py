"""The optional dependencies, imported here on first use."""

from importlib import import_module
from types import ModuleType

FAISS_COMMANDS = 'pip install "pml-supcon[cpu]" (CPU) or pip install "pml-supcon[cuda]" (NVIDIA GPU)'
CORRUPTIONS_COMMAND = 'pip install "pml-supcon[corruptions]"'
UMAP_COMMAND = 'pip install "pml-supcon[umap]"'


def require_faiss() -> ModuleType:
    """Import FAISS, or raise an ImportError with the install command.

    Returns:
        The module ``faiss``, from ``faiss-cpu`` or ``faiss-gpu``.

    Raises:
        ImportError: If FAISS is not installed or cannot be loaded; the message holds the command that
            installs it.

    Examples:
        >>> require_faiss().IndexFlatL2(2).d
        2
    """
    try:
        return import_module("faiss")
    except ImportError as error:
        raise ImportError(
            f"Nearest neighbours need FAISS, which could not be imported ({error}). Install it with {FAISS_COMMANDS}"
        ) from error


def require_imagecorruptions() -> ModuleType:
    """Import the library of image corruptions, or raise an ImportError with the install command.

    Returns:
        The module ``imagecorruptions``, from ``imagecorruptions-imaug``; its helpers are in ``.corruptions``.

    Raises:
        ImportError: If it is not installed or cannot be loaded; the message holds the command that installs it.

    Examples:
        >>> len(require_imagecorruptions().get_corruption_names())
        15
    """
    try:
        return import_module("imagecorruptions")
    except ImportError as error:
        raise ImportError(
            f"Corruptions need imagecorruptions-imaug, which could not be imported ({error}). Install it with "
            f"{CORRUPTIONS_COMMAND}. If OpenCV misses a system library such as libGL.so.1, replace "
            "opencv-python with opencv-python-headless"
        ) from error


def require_umap() -> ModuleType:
    """Import UMAP, or raise an ImportError with the install command.

    Returns:
        The module ``umap``, from ``umap-learn``.

    Raises:
        ImportError: If it is not installed or cannot be loaded; the message holds the command that installs it.
    """
    try:
        return import_module("umap")
    except ImportError as error:
        raise ImportError(
            f"The map by UMAP needs umap-learn, which could not be imported ({error}). Install it with {UMAP_COMMAND}"
        ) from error
