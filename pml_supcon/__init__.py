"""Supervised contrastive learning (Khosla et al., NeurIPS 2020) as a plug-in for pytorch-metric-learning.

The public packages are listed in the order in which a batch passes through them. Each is imported on first use.
The engine (``data``, ``training``, ``evaluation``, ``experiments``) is imported by its full name.
"""

import lazy_loader

__version__ = "0.1.0"
__all__ = [  # noqa: RUF022 - flow order
    "samplers",
    "views",
    "models",
    "targets",
    "functional",
    "miners",
    "losses",
    "search",
    "metrics",
    "testers",
    "corruptions",
]
__getattr__, __dir__, _ = lazy_loader.attach(__name__, submodules=__all__)
