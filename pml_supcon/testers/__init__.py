"""What frozen embeddings are worth: functions over arrays, and PML testers that report them."""

import lazy_loader

# Names are imported from where `__init__.pyi` says, when they are first used:
# PML's testers, scikit-learn and torchvision take a second and more to import.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
