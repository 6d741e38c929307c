"""Stems for small images, without the stride and the max-pool before the first block.

A network for 224 x 224 images reduces the side of its input to a quarter before its first block: 32 x 32 pixels would
become 8 x 8 positions. The CIFAR literature (Khosla et al. 2020; Chen et al. 2020, appendix B.9) therefore starts with
a 3 x 3 convolution of stride 1 and no pooling.
"""

import warnings
from typing import Any

import timm
from timm.layers import Conv2dSame, StdConv2d, StdConv2dSame
from timm.models import load_pretrained, register_model
from torch import nn

# The paths of the stem's pooling in timm's families. `maxpool` (ResNets) may also hold strided convolutions.
_STEM_POOLS = ("maxpool", "stem.pool", "pool0", "features.pool0", "features.conv1_pool")
_KERNEL = 3


def _stem_obstacle(encoder: nn.Module) -> str | None:
    """Return why ``shrink_stem`` does not apply to ``encoder``, as a phrase after "this model ..."; None if it applies.

    It applies where timm names one first convolution (``first_conv``) of stride 2 that is not a patch embedding, and
    where no later layer depends on the size of the feature map.
    """
    config: dict[str, Any] = getattr(encoder, "default_cfg", {})
    name = config.get("first_conv")
    modules = dict(encoder.named_modules())
    conv = modules.get(name) if isinstance(name, str) else None
    if not isinstance(conv, nn.Conv2d):
        return f"has no single first convolution (timm names {name!r})"
    (height, width), stride = conv.kernel_size, conv.stride
    if stride == (1, 1):
        return f"already has a first convolution of stride 1 (`{name}`)"
    if (height, width) == stride:
        return f"cuts the image into patches of {height} x {width}"
    if stride != (2, 2) or height < _KERNEL:
        return f"has a first convolution of {height} x {width} with stride {stride[0]} (`{name}`), expected stride 2"
    if config.get("fixed_input_size", False):
        return "has positions tied to one image size"
    resizable = (nn.Conv2d, Conv2dSame, StdConv2d, StdConv2dSame)
    if (height, width) != (_KERNEL, _KERNEL) and type(conv) not in resizable:
        return f"has a first convolution of type {type(conv).__name__}, whose scale depends on its kernel size"
    return None


def shrink_stem(encoder: nn.Module) -> bool:
    """Shrink the stem in place: the first convolution becomes 3 x 3 with stride 1, the max-pool an identity.

    A first convolution that is 3 x 3 already (deep stems such as resnet18d's, EfficientNets) keeps its weights and
    only loses its stride. A larger one gets new weights (He initialisation): pretrained ones do not fit.

    Args:
        encoder: a model of timm.

    Returns:
        True if the first convolution got new weights, False if it kept them.

    Raises:
        ValueError: If the stem cannot be shrunk; the error gives the reason.
    """
    obstacle = _stem_obstacle(encoder)
    if obstacle is not None:
        raise ValueError(f"Expected a model with a strided stem that can be shrunk, but this model {obstacle}")
    model: Any = encoder
    conv: Any = encoder.get_submodule(model.default_cfg["first_conv"])
    resized = bool(conv.kernel_size != (_KERNEL, _KERNEL))
    # In place: the layer keeps its class, which may add weight standardisation or "same" padding (timm).
    conv.stride = (1, 1)
    if resized:
        shape = (conv.out_channels, conv.in_channels // conv.groups, _KERNEL, _KERNEL)
        conv.weight = nn.Parameter(conv.weight.new_empty(shape))
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        conv.kernel_size = (_KERNEL, _KERNEL)
        if conv.padding != (0, 0):  # (0, 0) is "valid" or is padded at run time: both fit any kernel
            conv.padding = (_KERNEL // 2, _KERNEL // 2)
    _remove_stem_pool(encoder)
    return resized


def _remove_stem_pool(encoder: nn.Module) -> None:
    modules = dict(encoder.named_modules())
    for path in _STEM_POOLS:
        pool = modules.get(path)
        if pool is not None and (path == "maxpool" or any(isinstance(m, nn.MaxPool2d) for m in pool.modules())):
            parent, _, name = path.rpartition(".")
            stem = encoder.get_submodule(parent)
            setattr(stem, name, nn.Identity())
            if parent and isinstance(getattr(stem, "pad", None), nn.ConstantPad2d):  # BiT pads only for its pool
                stem.pad = nn.Identity()
            return


def small_stem(
    pretrained: bool = False,
    *,
    base: str,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | None = None,
    pretrained_model_args: dict[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build the timm model ``base`` with a small stem; timm calls this for ``create_model("small_stem", base=...)``.

    Args:
        pretrained: with a ``pretrained_cfg`` that has a source (``local-dir:``, ``hf-hub:``), load weights of the
            small-stem model; else load the weights of the base, and give a resized first convolution new ones.
        base: name of the timm model that gets the small stem.
        pretrained_cfg: timm's description of the weights; the entries of ``pretrained_cfg_overlay`` replace its own.
        pretrained_cfg_overlay: see ``pretrained_cfg``.
        cache_dir: folder for downloads.
        pretrained_model_args: timm's record of the saved model's arguments; unused.
        **kwargs: arguments of the base (``in_chans``, ``num_classes``, ...).
    """
    stored = isinstance(pretrained_cfg, dict) and pretrained
    weights = {} if stored else {"pretrained": pretrained, "pretrained_cfg_overlay": pretrained_cfg_overlay}
    model: Any = timm.create_model(base, cache_dir=cache_dir, **weights, **kwargs)
    if shrink_stem(model) and pretrained and not stored:
        warnings.warn(
            f"The first convolution of {base} became 3 x 3: it has new weights instead of the pretrained ones",
            stacklevel=2,
        )
    given = pretrained_cfg if isinstance(pretrained_cfg, dict) else {}
    config = {**model.pretrained_cfg, **given, **(pretrained_cfg_overlay or {}), "architecture": "small_stem"}
    model.pretrained_cfg = model.default_cfg = config
    if stored:
        channels = kwargs.get("in_chans", 3)
        load_pretrained(model, config, num_classes=model.num_classes, in_chans=channels, cache_dir=cache_dir)
    return model  # type: ignore[no-any-return]


register_model(small_stem)
