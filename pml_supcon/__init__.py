"""Supervised contrastive learning (Khosla et al., NeurIPS 2020) as a plug-in for pytorch-metric-learning.

The sub-packages stand in the order in which a batch flows through them, with what needs an extra last; each is
imported when first used.
"""

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"
__all__ = [  # noqa: RUF022 - flow order
    "samplers",
    "views",
    "models",
    "functional",
    "miners",
    "losses",
    "distributed",
    "testers",
    "corruptions",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
