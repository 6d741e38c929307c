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

import pml_supcon.testers
from helpers.stand_ins import COMMANDS
from pml_supcon.evaluation import app as evaluate
from pml_supcon.experiments import app as reproduce
from pml_supcon.training import app as train

Image.init()
torch.set_num_threads(1)

LOADED = (docstring_parser, hypothesis, imagecorruptions, matplotlib, pml_supcon, pytest, sklearn, timm, xdist)
LOADED += (evaluate, reproduce, train)
__all__ = ["COMMANDS", "LOADED"]
