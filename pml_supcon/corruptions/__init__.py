"""The 15 corruptions of ImageNet-C at five severities, drawn for every image by itself."""

from pml_supcon.corruptions.corruption import CORRUPTIONS, Corruption, strengths_for

__all__ = ["CORRUPTIONS", "Corruption", "strengths_for"]
