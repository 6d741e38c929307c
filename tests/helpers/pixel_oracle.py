"""The loss of mask prototypes in plain loops over pixels, from its equation, and with one mistake each."""

import torch

MISTAKES = (
    "prototypes without gradient",
    "pixels without gradient",
    "prototypes over all images",
    "masks of all images in the denominator",
    "mean of features that are not normalised",
    "prototypes not normalised",
    "pixel left out of its prototype",
    "ignored pixels counted",
    "ignored pixels in the denominator",
    "own mask left out of the denominator",
    "temperature forgotten",
    "sum over pixels for their mean",
    "mean over images of their means",
)


def prototype_loss(features, masks, *, temperature=0.3, ignore_value=None, mistake=None):
    """Return the batch loss of features `(B, D, h, w)` with a graph."""

    def unit(x):
        return x / x.square().sum().sqrt()

    def mask_of(place):
        return (place[0] if mistake != "prototypes over all images" else 0, int(masks[place]))

    places = [(b, i, j) for b, i, j in torch.cartesian_prod(*map(torch.arange, masks.shape)).tolist()]
    used = [place for place in places if mistake == "ignored pixels counted" or int(masks[place]) != ignore_value]
    raw = {(b, i, j): features[b, :, i, j] for b, i, j in places}
    rows = raw if mistake == "mean of features that are not normalised" else {p: unit(x) for p, x in raw.items()}

    def prototype(mask, without=None):
        members = [rows[p] for p in places if mask_of(p) == mask and p != without]
        mean = sum(members) / len(members)
        mean = mean if mistake == "prototypes not normalised" else unit(mean)
        return mean.detach() if mistake == "prototypes without gradient" else mean

    kept = places if mistake == "ignored pixels in the denominator" else used
    prototypes = {mask: prototype(mask) for mask in sorted({mask_of(p) for p in kept})}
    losses = {}
    for place in used:
        own, pixel = mask_of(place), unit(raw[place])
        pixel = pixel.detach() if mistake == "pixels without gradient" else pixel
        s = {}
        for mask, t in prototypes.items():
            if mask[0] == own[0] or mistake == "masks of all images in the denominator":
                alone = mistake == "pixel left out of its prototype" and mask == own
                others = sum(mask_of(p) == mask for p in places) > 1
                t = prototype(mask, without=place) if alone and others else t
                s[mask] = (t @ pixel) / (1 if mistake == "temperature forgotten" else temperature)
        total = [x for mask, x in s.items() if mistake != "own mask left out of the denominator" or mask != own]
        losses[place] = torch.stack(total).exp().sum().log() - s[own] if total else 0 * s[own]
    if mistake == "mean over images of their means":
        means = [
            torch.stack(own).mean()
            for own in ([x for p, x in losses.items() if p[0] == b] for b in range(len(masks)))
            if own
        ]
        return torch.stack(means).mean()
    return sum(losses.values()) / (1 if mistake == "sum over pixels for their mean" else len(losses))
