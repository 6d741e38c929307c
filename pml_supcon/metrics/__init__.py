"""Scores of frozen embeddings: functions of arrays."""

import lazy_loader

# Names are imported from the modules in `__init__.pyi` when they are first used: scikit-learn takes a second to import.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
