"""The supervised contrastive losses as pytorch-metric-learning losses."""

import lazy_loader

# Names are imported from where `__init__.pyi` says, when they are first used:
# `torch.compiler.disable`, on the methods of some, imports the compiler, which takes a second.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
