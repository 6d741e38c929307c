"""Any timm model as a feature extractor, with a stem for small images."""

import json
import textwrap
import warnings
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.models import get_pretrained_cfg, is_model, is_model_pretrained, split_model_name_tag
from torch import nn

from pml_supcon._checks import check_choice, check_int, check_type, did_you_mean
from pml_supcon.models.stems import _stem_obstacle, shrink_stem
from pml_supcon.models.storage import BuildRecord, read_weights

_WEIGHT_SOURCES = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
_SMALL_IMAGE = 64  # pixels a side: "auto" shrinks the stem up to this size


def create_encoder(
    name: str,
    *,
    in_chans: int = 3,
    image_size: int | None = None,
    small_stem: bool | Literal["auto"] = "auto",
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    **timm_kwargs: Any,
) -> nn.Module:
    """Create a timm model that maps images (N, in_chans, H, W) to pooled features (N, feature_width(encoder)).

    Args:
        name: a name of ``timm.list_models()``, with or without a weight tag (``resnet18``, ``resnet18.a1_in1k``).
        in_chans: channels of the images, >= 1.
        image_size: side of the square images in pixels, None if unknown. With a size, models with positions for one
            size (vision transformers) are built for it, and a blank image checks that the model accepts it.
        small_stem: True shrinks the stem (see ``shrink_stem``); "auto" shrinks it where ``image_size`` is at most 64
            and the model's stem allows it; False keeps the stem.
        pretrained: start from timm's weights for this name (downloaded on first use). A first convolution that becomes
            3 x 3 gets new weights, with a warning; one that is 3 x 3 already keeps its pretrained weights.
        checkpoint: a weights file (.safetensors, .pt, .pth) or a folder of ``save_encoder``, loaded into the finished
            model with its small stem. Weights of the classifier are ignored; all others must fit.
        **timm_kwargs: further arguments of the model, values that JSON can store (``drop_path_rate=0.1``,
            ``patch_size=4``).

    Returns:
        The encoder, in training mode and without a classifier.

    Raises:
        TypeError: If ``in_chans`` or ``image_size`` is not an integer.
        ValueError: If the name is unknown (the error lists the nearest), the stem cannot be shrunk, the model does
            not accept the image size, or weights are missing or do not fit.
        FileNotFoundError: If ``checkpoint`` does not exist.

    Examples:
        >>> encoder = create_encoder("resnet18", image_size=32)
        >>> encoder.conv1.stride, encoder.maxpool
        ((1, 1), Identity())
        >>> encoder(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 512])
    """
    check_encoder_name(name)
    check_choice("small_stem", small_stem, (True, False, "auto"))
    check_int("in_chans", in_chans, low=1)
    if image_size is not None:
        check_int("image_size", image_size, low=1)
    _check_weights(name, pretrained, checkpoint)
    _check_options(timm_kwargs)
    architecture = split_model_name_tag(name)[0]
    arguments = {"num_classes": 0, "in_chans": in_chans, **timm_kwargs}
    try:
        registered = get_pretrained_cfg(name)
        if image_size is not None and registered is not None and registered.fixed_input_size:
            arguments.setdefault("img_size", image_size)
        encoder: Any = timm.create_model(name, pretrained=pretrained, **arguments)
    except OSError as error:  # the file is not in the cache, and there is no connection
        raise OSError(
            f"The pretrained weights of {name} could not be fetched (`checkpoint` takes a local file): {error}"
        ) from error
    except Exception as error:  # each model has its own errors for its arguments
        raise ValueError(
            f"timm could not build {name} with {arguments}, pretrained={pretrained}: {_reason(error)}"
        ) from error
    _check_kind(encoder, name)

    if small_stem is True or (small_stem == "auto" and image_size is not None and image_size <= _SMALL_IMAGE):
        obstacle = _stem_obstacle(encoder)
        if obstacle is None:
            resized = shrink_stem(encoder)
            architecture, arguments = "small_stem", {"base": architecture, **arguments}
            if resized and pretrained:
                warnings.warn(
                    f"The first convolution of {name} became 3 x 3: it has new weights instead of the "
                    "pretrained ones (`small_stem=False` keeps them)",
                    stacklevel=2,
                )
        elif small_stem is True:
            raise ValueError(f"Expected `small_stem` to be False or 'auto' for {name}, but got True: it {obstacle}")
    if image_size is not None:
        _check_image_size(encoder, name, in_chans, image_size)
    # Do not record the source of the initial weights: a saved encoder carries its own.
    arguments = {key: value for key, value in arguments.items() if key not in _WEIGHT_SOURCES}
    BuildRecord(architecture, arguments, image_size).attach(encoder)
    if checkpoint is not None:
        _load_checkpoint(encoder, name, Path(checkpoint))
    return encoder  # type: ignore[no-any-return]


def feature_width(encoder: nn.Module) -> int:
    """Return the width of the pooled features of ``encoder``.

    It is timm's ``num_features``, except in the families whose pooled features pass one more layer (MobileNetV3,
    EfficientViT, ...): there it is ``head_hidden_size``.

    Examples:
        >>> feature_width(create_encoder("mobilenetv3_small_050"))
        1024
    """
    model: Any = encoder
    return int(getattr(model, "head_hidden_size", None) or model.num_features)


def check_encoder_name(name: str) -> None:
    """Raise unless timm has a model with this name; the error lists the nearest names.

    Raises:
        ValueError: If there is no such model.
    """
    check_type("name", name, str, "a string")
    if ":" in name or "/" in name:
        raise ValueError(
            f"Expected `name` to be a name of timm.list_models(), but got {name!r}: folders are opened by "
            "`load_encoder`, other sources by `timm.create_model`"
        )
    if not is_model(name):
        hint = did_you_mean(name, timm.list_models(), number=5, cutoff=0.5)
        raise ValueError(f"Expected `name` to be a name of timm.list_models(), but got {name!r}{hint}")


def _check_weights(name: str, pretrained: bool, checkpoint: str | Path | None) -> None:
    if pretrained and checkpoint is not None:
        raise ValueError("Expected one of `pretrained` and `checkpoint`, but got both: a checkpoint holds all weights")
    if pretrained and not is_model_pretrained(name):
        raise ValueError(f"Expected a model with pretrained weights, but timm has none for {name!r}")


def _check_options(timm_kwargs: dict[str, Any]) -> None:
    if "num_classes" in timm_kwargs:
        raise ValueError("Expected no argument `num_classes`: an encoder has no classifier, but got one")
    for argument, option in timm_kwargs.items():
        try:
            json.dumps(option)
        except TypeError:
            raise ValueError(
                f"Expected `{argument}` to be a plain value that `save_encoder` can write, but got "
                f"{type(option).__name__}"
            ) from None


def _check_image_size(encoder: nn.Module, name: str, in_chans: int, image_size: int) -> None:
    """Raise unless the model accepts images of this size and uses all their pixels."""
    embedding = getattr(encoder, "patch_embed", None)
    patch = getattr(embedding, "patch_size", None)
    if isinstance(patch, tuple) and not getattr(embedding, "dynamic_img_pad", False) and image_size % max(patch):
        raise ValueError(
            f"Expected `image_size` to be a multiple of the patch size {max(patch)} of {name}, but got {image_size}: "
            "the model would ignore the rest of the image (some models accept a smaller `patch_size`)"
        )
    weight = next(encoder.parameters())
    blank = weight.new_zeros(2, in_chans, image_size, image_size)
    training, buffers = encoder.training, {key: value.clone() for key, value in encoder.named_buffers()}
    expected = (2, feature_width(encoder))
    try:
        # In both modes, because dropout fails in one of them; the modes must leave no trace.
        with torch.no_grad(), torch.random.fork_rng([weight.device] if weight.is_cuda else []):
            shapes = [tuple(encoder.train(mode)(blank).shape) for mode in (False, True)]
    except Exception as error:  # each model has its own errors
        raise ValueError(f"{name} does not accept images of {image_size} x {image_size}: {_reason(error)}") from error
    finally:
        encoder.train(training)
        for key, value in encoder.named_buffers():
            if key in buffers:
                value.copy_(buffers[key])
    if wrong := [shape for shape in shapes if shape != expected]:
        raise ValueError(f"Expected {name} to return pooled features of shape {expected}, but got {wrong[0]}")


def _check_kind(encoder: Any, name: str) -> None:
    """Raise unless the model has a feature width, and weights with values."""
    if not hasattr(encoder, "num_features"):
        raise ValueError(
            f"Expected {name} to return pooled features, but got {type(encoder).__name__} (`features_only` and others "
            "make another kind of model)"
        )
    first = next(encoder.parameters(), None)
    if first is None or (first.is_meta and torch.get_default_device().type != "meta"):
        raise ValueError(f"Expected {name} to have weights with values, but got {'none' if first is None else 'meta'}")


def _reason(error: Exception) -> str:
    """Return the message of an error; its type too if the message is a bare name or number."""
    text = textwrap.shorten(str(error), 500)
    return text if " " in text else f"{type(error).__name__} {text}".strip()


def _load_checkpoint(encoder: nn.Module, name: str, checkpoint: Path) -> None:
    """Load every weight of the encoder from a file; only classifier weights may remain unused."""
    model: Any = encoder
    stored = read_weights(checkpoint)
    heads = model.default_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    own = encoder.state_dict()
    stored = {key: value for key, value in stored.items() if key in own or key.rpartition(".")[0] not in heads}
    try:
        encoder.load_state_dict(stored)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"The weights in {checkpoint} do not fit {name} (is its stem small in one and not in the other?): "
            f"{textwrap.shorten(str(error), 500)}"
        ) from error
