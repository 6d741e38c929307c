"""What commands import, imported once, before they are forked."""

import docstring_parser
import hypothesis.extra.numpy
import imagecorruptions
import matplotlib.backends.backend_agg
import matplotlib.backends.backend_svg
import matplotlib.pyplot
import pytest
import sklearn.cluster
import sklearn.linear_model
import sklearn.manifold
import timm
import torch
import xdist.plugin
from PIL import Image
from stand_ins import COMMANDS

import pml_supcon.testers
from pml_supcon.recipes import evaluate, reproduce, train

Image.init()
torch.set_num_threads(1)

LOADED = (docstring_parser, hypothesis, imagecorruptions, matplotlib, pml_supcon, pytest, sklearn, timm, xdist)
LOADED += (evaluate, reproduce, train)
__all__ = ["COMMANDS", "LOADED"]
