"""Decoding: orientation, transparency, bit depth and frames, each in every format that has them."""

import struct
import zlib

import numpy as np
import pytest
import torch
from helpers.image_folders import refuse, write_classes
from PIL import ExifTags, Image

from pml_supcon.data.images import as_tensor, read_image, shape_of
from pml_supcon.data.load import load_data

ORIENTATIONS = {  # the tag, and the transposition that undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class OneFile(list):
    def __getitem__(self, index):
        return Image.open(super().__getitem__(index))

    def where(self, index):
        return str(super().__getitem__(index))


def pixels_of(path, in_chans=3):
    images = OneFile([path])
    pixels = as_tensor(read_image(images, 0, in_chans))
    assert shape_of(images, 0)[1] == pixels.shape[1:], "the header has another size than the image"
    return pixels


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".webp", ".jpg"])
@pytest.mark.parametrize("tag", ORIENTATIONS)
def test_a_turned_image_is_set_upright(tmp_path, suffix, tag):
    stored = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = tag
    options = {"lossless": True} if suffix == ".webp" else {}
    stored.save(tmp_path / f"turned{suffix}", exif=exif, **options)
    stored.save(tmp_path / f"plain{suffix}", **options)
    with Image.open(tmp_path / f"plain{suffix}") as plain:
        upright = plain.convert("RGB").transpose(ORIENTATIONS[tag])
    assert torch.equal(pixels_of(tmp_path / f"turned{suffix}"), as_tensor(upright))


@pytest.mark.parametrize(("mode", "hidden"), [("RGBA", (9, 8, 7, 0)), ("LA", (9, 0))])
def test_what_is_transparent_is_white(tmp_path, mode, hidden):
    image = Image.new(mode, (4, 4), hidden)
    image.putpixel((1, 0), (40, 255) if mode == "LA" else (40, 40, 40, 255))
    image.save(tmp_path / "a.png")
    for in_chans in (3, 1) if mode == "LA" else (3,):
        pixels = pixels_of(tmp_path / "a.png", in_chans)
        assert pixels[:, 0, 1].tolist() == [40] * in_chans
        assert (pixels.flatten(1).double().mean(1) == (15 * 255 + 40) / 16).all()


def test_a_transparent_colour_of_a_palette_is_white(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putpixel((2, 3), 0)
    image.save(tmp_path / "a.png", transparency=1)
    pixels = pixels_of(tmp_path / "a.png")
    assert pixels[:, 3, 2].tolist() == [10, 20, 30]
    assert pixels[:, 0, 0].tolist() == [255] * 3


def png_of_16_bits(colour_type, channels):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 2, 2, 16, colour_type, 0, 0, 0)
    rows = (b"\0" + b"\x12\x34" * channels * 2) * 2
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rgb.png", png_of_16_bits(2, 3)),
        ("rgba.png", png_of_16_bits(6, 4)),
        ("grey.png", png_of_16_bits(0, 1)),
        ("grey_alpha.png", png_of_16_bits(4, 2)),
        ("rgb.ppm", b"P6\n2 2\n65535\n" + b"\x12\x34" * 12),
        ("plain.ppm", b"P3\n2 2\n65535\n" + b"12 " * 12),
        ("grey.pgm", b"P5\n2 2\n65535\n" + b"\x12\x34" * 4),
    ],
)
def test_16_bits_are_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"8 bits per channel, but got more.*{name}"):
        pixels_of(tmp_path / name)


def test_8_bits_of_other_ranges_are_read(tmp_path):
    (tmp_path / "a.ppm").write_bytes(b"P6\n2 2\n100\n" + b"\x32" * 12)
    assert pixels_of(tmp_path / "a.ppm").unique().tolist() == [128]


@pytest.mark.parametrize("suffix", [".gif", ".tiff", ".webp", ".png"])
def test_several_frames_are_refused_by_name(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (10, 90)]
    frames[0].save(tmp_path / f"film{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=f"one frame, but got several.*film{suffix}"):
        pixels_of(tmp_path / f"film{suffix}")


def test_a_photograph_with_a_second_view_is_read(tmp_path):
    """Cameras write a preview behind the photograph, in files named .jpg."""
    views = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (10, 90)]
    views[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=views[1:])
    assert pixels_of(tmp_path / "a.jpg")[0].unique().tolist() == [10]


def test_turned_images_of_one_upright_size_stay_in_memory(tmp_path):
    write_classes(tmp_path, red=4, green=4, size=(16, 8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (8, 16), (200, 0, 0)).save(tmp_path / "red/000.png", exif=exif)
    assert load_data(f"imagefolder:{tmp_path}").train.images.shape[1:] == (3, 8, 16)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_broken_exif_data_are_named(tmp_path, suffix):
    write_classes(tmp_path, red=5, green=5)
    Image.new("RGB", (12, 12)).save(tmp_path / f"red/x{suffix}", exif=b"Exif\0\0no exif!")
    refuse(f"imagefolder:{tmp_path}", f"red/x{suffix} has EXIF data that cannot be read: not a TIFF file")


def test_images_of_16_bits_in_a_folder_end_the_run(tmp_path):
    write_classes(tmp_path, red=5, green=5)
    (tmp_path / "red/000.png").write_bytes(png_of_16_bits(2, 3))
    refuse(f"imagefolder:{tmp_path}", "8 bits per channel.*red/000.png")
