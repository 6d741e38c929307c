"""Encoders from timm's models: their stems, weights and errors."""

import pytest
import timm
import torch
from torch import nn

from pml_supcon.models import create_encoder, feature_width, save_encoder, shrink_stem


def sides_of(encoder, size):
    """Return the side of the feature map after each stage of a ResNet."""
    sides = []
    for name in ("conv1", "layer1", "layer2", "layer3", "layer4"):
        encoder.get_submodule(name).register_forward_hook(lambda _, __, out: sides.append(out.shape[-1]))
    with torch.no_grad():
        encoder.eval()(torch.zeros(1, 3, size, size))
    return sides


def test_small_resnet18_is_the_cifar_network():
    encoder = create_encoder("resnet18", image_size=32)
    assert encoder.bn1.num_batches_tracked == 0  # the check of the image size leaves no trace
    assert sides_of(encoder, 32) == [32, 32, 16, 8, 4]
    # The widely used CIFAR ResNet-18 has 11,173,962 parameters, of which 5,130 are its classifier's.
    assert sum(p.numel() for p in encoder.parameters()) == 11_173_962 - 5_130
    assert encoder.conv1.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("image_size", "small_stem", "first"),
    [(64, "auto", 64), (65, "auto", 17), (32, False, 8), (96, True, 96), (None, "auto", 8), (None, True, 32)],
)
def test_when_the_stem_is_small(image_size, small_stem, first):
    encoder = create_encoder("resnet18", image_size=image_size, small_stem=small_stem)
    assert sides_of(encoder, image_size or 32)[1] == first


WITH_POOL, WITHOUT_POOL = (
    "resnet18 resnet18d resnetv2_50x1_bit densenet121",
    "efficientnet_b0 tf_efficientnet_b0 test_nfnet",
)


@pytest.mark.parametrize("name", f"{WITH_POOL} {WITHOUT_POOL}".split())
def test_small_stems_of_the_families(name):
    factor = 4 if name in WITH_POOL.split() else 2  # the feature map grows by the strides of convolution and pooling
    with torch.device("meta"):
        plain, small = (timm.create_model(name, num_classes=0).eval() for _ in range(2))
        shrink_stem(small)
        x = torch.zeros(1, 3, 128, 128)
        assert small.forward_features(x).shape[-1] == factor * plain.forward_features(x).shape[-1]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_tiny_patch16_224", "cuts the image into patches of 16 x 16"),
        ("test_coatnet", "positions tied to one image size"),
        ("pvt_v2_b0", "7 x 7 with stride 4"),
        ("nf_resnet26", "ScaledStdConv2d, whose scale depends on its kernel size"),
        ("vgg11", "first convolution of stride 1"),
        ("crossvit_9_240", "no single first convolution"),
    ],
)
def test_stems_that_cannot_be_small(name, reason):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    with pytest.raises(ValueError, match=reason):
        shrink_stem(model)


def test_true_is_an_error_where_auto_leaves_the_stem():
    with pytest.raises(ValueError, match="False or 'auto' for test_vit, but got True: it cuts the image into patches"):
        create_encoder("test_vit", image_size=32, small_stem=True)
    encoder = create_encoder("test_vit", image_size=32)
    assert encoder.patch_embed.grid_size == (2, 2)
    assert encoder(torch.zeros(2, 3, 32, 32)).shape == (2, 64)


def test_arguments_reach_the_model():
    encoder = create_encoder("test_vit", image_size=32, patch_size=4, drop_rate=0.25)
    assert encoder.patch_embed.grid_size == (8, 8)
    assert encoder.head_drop.p == 0.25


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "test_vit"])
def test_feature_width_is_the_width_of_the_output(name):
    encoder = create_encoder(name, image_size=64)
    assert encoder.training
    with torch.no_grad():
        assert encoder.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, feature_width(encoder))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnt18"}, "but got 'resnt18'; did you mean .*'resnet18'"),
        ({"name": "local-dir:x"}, "folders are opened by `load_encoder`"),
        ({"name": "resnet18.no_such_tag"}, "timm could not build .* Invalid pretrained tag"),
        ({"in_chans": 0}, "`in_chans` to be at least 1, but got 0"),
        ({"image_size": 0}, "`image_size` to be at least 1, but got 0"),
        ({"small_stem": "yes"}, r"one of \[True, False, 'auto'\], but got 'yes'"),
        ({"num_classes": 10}, "no argument `num_classes`"),
        ({"norm_layer": nn.BatchNorm2d}, "`norm_layer` to be a plain value .* but got type"),
        ({"pretrained": True, "checkpoint": "x"}, "one of `pretrained` and `checkpoint`"),
        ({"name": "regnetz_005", "pretrained": True}, "timm has none for 'regnetz_005'"),
        ({"name": "test_resnet", "image_size": 32, "global_pool": ""}, r"pooled features of shape \(2, 96\), but got"),
        ({"name": "test_vit", "image_size": 40}, "multiple of the patch size 16 of test_vit, but got 40"),
        ({"name": "vgg11", "image_size": 8}, "vgg11 does not accept images of 8 x 8: .*too small"),
        ({"name": "test_convnext", "image_size": 4}, "test_convnext does not accept images of 4 x 4"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        create_encoder(**{"name": "resnet18", **options})


def classifier_in_a_file(name, folder):
    """Return a whole classifier of timm and a file with its weights, as timm's downloads are."""
    model, file = timm.create_model(name), str(folder / f"{name}.pth")
    torch.save(model.state_dict(), file)
    return model, {"file": file}


def test_pretrained_weights_are_kept_except_in_a_resized_convolution(tmp_path):
    model, source = classifier_in_a_file("resnet18", tmp_path)
    with pytest.warns(UserWarning, match="first convolution of resnet18 became 3 x 3: it has new weights"):
        encoder = create_encoder("resnet18", image_size=32, pretrained=True, pretrained_cfg_overlay=source)
    own, given = encoder.state_dict(), model.state_dict()
    assert all(torch.equal(own[key], given[key]) for key in own if key != "conv1.weight")
    assert save_encoder(encoder, tmp_path / "out").is_dir()
    assert source["file"] not in (tmp_path / "out/config.json").read_text()  # the source of the initial weights


@pytest.mark.filterwarnings("error")
def test_pretrained_three_by_three_stems_are_kept_without_a_warning(tmp_path):
    model, source = classifier_in_a_file("test_resnet", tmp_path)
    encoder = create_encoder("test_resnet", image_size=32, pretrained=True, pretrained_cfg_overlay=source)
    assert encoder.conv1[0].stride == (1, 1)
    assert torch.equal(encoder.conv1[0].weight, model.conv1[0].weight)


def test_missing_pretrained_weights_are_an_os_error():
    with pytest.raises(OSError, match="pretrained weights of test_resnet could not be fetched"):
        create_encoder("test_resnet", pretrained=True, pretrained_cfg_overlay={"file": "/nowhere.pth"})


def test_checkpoint_file_folder_and_classifier(tmp_path):
    model, source = classifier_in_a_file("test_resnet", tmp_path)
    from_file = create_encoder("test_resnet", checkpoint=source["file"])
    x = torch.randn(2, 3, 32, 32)
    expected = model.eval().forward_head(model.forward_features(x), pre_logits=True)
    assert torch.equal(from_file.eval()(x), expected)
    small = create_encoder("test_resnet", image_size=32)
    save_encoder(small, tmp_path / "small")
    again = create_encoder("test_resnet", image_size=32, checkpoint=tmp_path / "small")
    assert torch.equal(again.eval()(x), small.eval()(x))


def test_checkpoint_that_does_not_fit(tmp_path):
    save_encoder(create_encoder("resnet18", image_size=32), tmp_path / "small")
    with pytest.raises(ValueError, match=r"small in one .*: .*conv1\.weight.*64, 3, 3, 3.*64, 3, 7, 7"):
        create_encoder("resnet18", checkpoint=tmp_path / "small")
    with pytest.raises(ValueError, match=r"do not fit test_resnet .* Missing key.*\[\.\.\.\]$"):
        create_encoder("test_resnet", checkpoint=tmp_path / "small/model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"there is no .*nowhere"):
        create_encoder("resnet18", checkpoint=tmp_path / "nowhere")
