"""All that the package knows of pytorch-metric-learning's internals (PML 2.9), by the kind of object that needs it.

PML 3 changes these internals; a port to it starts here. The losses import `losses` alone: PML's testers take a second.
"""
