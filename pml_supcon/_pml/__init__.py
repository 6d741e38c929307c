"""Adapters to internals of pytorch-metric-learning (PML 2.9), by the kind of object that needs them.

PML 3 changes these internals; a port to it starts here. The losses import only ``losses``: importing PML's testers
takes a second.
"""
