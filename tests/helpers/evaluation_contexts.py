"""A stand-in for `EvaluationContext` in the tests of sections."""

from types import SimpleNamespace

import torch

from pml_supcon.data.images import evenly


class StandInContext:
    """The part of a context that sections use, over images in memory.

    Args:
        train: The images and labels of train.
        test: The images and labels of test.
        embed: Maps images to the features of the encoder.
        head: Maps these features to the outputs of the projection head; None: there is no head.
        settings: The settings by name, or an object with them.
        data: The data set by attribute, or an object with them.
        others: Further attributes of the context.

    Attributes:
        asked: The features that the section asked for: the split, the key of the change, and the output.
    """

    def __init__(self, train, test, embed, *, head=None, settings, data=None, is_main=True, **others):
        self.splits, self.embed, self.head = {"train": train, "test": test}, embed, head
        self.settings = SimpleNamespace(**settings) if isinstance(settings, dict) else settings
        self.data = SimpleNamespace(**{"labels_are": "classes", **data}) if isinstance(data, dict) else data
        self.is_main, self.has_head, self.asked, self.notes = is_main, head is not None, [], []
        vars(self).update(others)

    def _rows(self, split, most):
        count = len(self.splits[split][1])
        return torch.tensor(evenly(count, most or count))

    def labels(self, split, *, most=None):
        return torch.as_tensor(self.splits[split][1])[self._rows(split, most)]

    @torch.no_grad()
    def features(self, split, *, change=None, of="encoder", most=None):
        self.asked.append((split, change and change.key, of))
        if not self.is_main:
            return torch.empty(0, 0)
        rows = self._rows(split, most)
        images = torch.as_tensor(self.splits[split][0])[rows]
        features = self.embed(images if change is None else change(images, rows))
        return self.head(features) if of == "head" else features

    def note(self, text):
        self.notes.append(text)
