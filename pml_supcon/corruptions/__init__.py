"""The 15 corruptions of ImageNet-C at five severities, drawn separately for every image."""

from pml_supcon.corruptions.corruption import CORRUPTIONS, Corruption, strengths_for

__all__ = ["CORRUPTIONS", "Corruption", "strengths_for"]
