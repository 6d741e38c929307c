"""Testers of pytorch-metric-learning that report the scores of `pml_supcon.metrics`."""

import lazy_loader

# Names are imported from the modules in `__init__.pyi` when they are first used: PML's testers take a second to import.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
