"""Folders of images: every mode, broken files, classes, the cache."""

import numpy as np
import pytest
from PIL import Image

from flowjax import data

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOR = np.stack([GREY, GREY.T, GREY[::-1]], -1)
ALPHA = np.where(GREY > 100, 255, 0).astype(np.uint8)
# Each: what is saved and under which name, and the colours that are to be read.
OVER_WHITE = np.where(ALPHA[..., None] > 0, COLOR, 255)
FILES = {
    "rgb": (Image.fromarray(COLOR), "a.png", COLOR),
    "grey": (Image.fromarray(GREY), "a.png", np.stack([GREY] * 3, -1)),
    "one bit": (
        Image.fromarray(GREY > 100),
        "a.png",
        np.stack([(GREY > 100) * np.uint8(255)] * 3, -1),
    ),
    "sixteen bits": (
        Image.fromarray(GREY.astype(np.uint16) * 257),
        "a.png",
        np.stack([GREY] * 3, -1),
    ),
    "palette": (
        Image.fromarray(GREY // 64 * 64).convert("P"),
        "a.PNG",
        np.stack([GREY // 64 * 64] * 3, -1),
    ),
    "transparent": (
        Image.fromarray(np.concatenate([COLOR, ALPHA[..., None]], -1)),
        "a.png",
        OVER_WHITE,
    ),
    "grey and transparent": (
        Image.fromarray(np.stack([GREY, ALPHA], -1)),
        "a.png",
        np.stack([np.where(ALPHA > 0, GREY, 255)] * 3, -1),
    ),
    "webp": (Image.fromarray(COLOR), "a.webp", COLOR),
    "jpeg": (Image.fromarray(COLOR), "a.jpeg", None),
}


def write(folder, **files):
    """Write images by name, ``__`` for a subfolder and ``_`` for the dot."""
    for name, image in files.items():
        path = folder / (name.replace("__", "/").replace("_", ".", 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return folder


@pytest.mark.parametrize("kind", FILES)
def test_every_mode_is_read_as_its_colours(kind, tmp_path):
    image, name, expected = FILES[kind]
    options = {"lossless": True} if name.endswith("webp") else {}
    image.save(tmp_path / name, **options)
    source = data.load_image_folder(tmp_path, size=None, mode="rgb")
    pixels, labels = source.gather([0])
    assert (labels, source.num_classes) == (None, None)
    assert pixels.shape == (1, 8, 8, 3)
    if expected is None:  # lossy
        expected = np.asarray(Image.open(tmp_path / name))
    np.testing.assert_array_equal(pixels[0], expected)


def test_turned_photographs_stand_upright(tmp_path):
    image = Image.fromarray(np.repeat(COLOR, 2, axis=1))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    image.save(tmp_path / "a.png", exif=exif)
    source = data.load_image_folder(tmp_path, size=None)
    assert source.image_shape == (16, 8, 3)
    expected = np.rot90(np.repeat(COLOR, 2, axis=1), -1)
    np.testing.assert_array_equal(source.gather([0])[0][0], expected)


@pytest.mark.parametrize(
    ("fit", "corner", "side"),
    [("crop", 255, 255), ("stretch", 0, 0), ("pad", 9, 0)],
)
def test_how_a_wide_image_becomes_square(fit, corner, side, tmp_path):
    wide = np.zeros((8, 24), np.uint8)  # a white middle between black sides
    wide[:, 8:16] = 255
    Image.fromarray(wide).save(tmp_path / "a.png")
    source = data.load_image_folder(tmp_path, size=8, fit=fit, background=9)
    image = source.gather([0])[0][0, ..., 0].astype(int)
    assert image.shape == (8, 8)
    # The filter of the reduction overshoots by a few levels.
    assert abs(image[0, 0] - corner) < 6
    assert abs(image[4, 0] - side) < 6


def test_subfolders_are_classes_in_order_whatever_is_cached(tmp_path):
    folder = write(
        tmp_path / "set",
        b__one_png=Image.fromarray(COLOR),
        a__two_png=Image.fromarray(GREY),
        a__deep__three_png=Image.fromarray(GREY),
        **{".hidden__four_png": Image.fromarray(GREY)},
    )
    (folder / "notes.txt").write_text("no image")
    options = [
        {},
        {"in_memory": False},
        {"cache": tmp_path / "cache"},
        {"cache": tmp_path / "cache"},
    ]
    sources = [data.load_image_folder(folder, size=4, **o) for o in options]
    first = sources[0].gather([0, 1, 2])
    assert first[1].tolist() == [0, 0, 1]
    assert sources[0].num_classes == 2
    assert sources[0].class_names == ("a", "b")
    for source in sources[1:]:
        for a, b in zip(source.gather([2, 0]), first, strict=True):
            np.testing.assert_array_equal(a, b[[2, 0]])
    assert len(list((tmp_path / "cache").iterdir())) == 1
    # Another rule, or another file, is another cache.
    data.load_image_folder(folder, size=5, cache=tmp_path / "cache")
    write(folder, a__five_png=Image.fromarray(GREY))
    assert len(data.load_image_folder(folder, size=4, cache=tmp_path / "cache")) == 4
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.parametrize("options", [{}, {"in_memory": False}, {"cache": "cache"}])
def test_broken_files_are_named_and_left_out(options, tmp_path):
    if "cache" in options:
        options = {"cache": tmp_path / "cache"}
    folder = write(tmp_path / "set", a_png=Image.fromarray(COLOR))
    (folder / "b.png").write_bytes(b"no image at all")
    with pytest.warns(RuntimeWarning, match=r"1 of 2 images .*b\.png"):
        source = data.load_image_folder(folder, **options)
    assert len(source) == 1
    with pytest.raises(ValueError, match=r"1 of 2 images .*b\.png"):
        data.load_image_folder(folder, broken="refuse", **options)


def test_a_file_that_is_cut_off_gives_its_place_to_the_next(tmp_path, untyped):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    first, second = (Image.fromarray(image) for image in (noise, noise[::-1]))
    folder = write(tmp_path, a_png=first, b_png=second)
    whole = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(whole[: len(whole) // 2])
    source = data.load_image_folder(folder, size=64, in_memory=False)
    with pytest.warns(RuntimeWarning, match=r"next image is taken for it: .*a\.png"):
        images, _ = source.gather([0, 1])
    np.testing.assert_array_equal(images[..., 0], np.stack([noise[::-1]] * 2))


FOLDER_ERRORS = {
    "no folder": ({}, {}, FileNotFoundError, "there is no folder"),
    "no image": ({"x__a_png": None}, {}, FileNotFoundError, "no image in"),
    "beside": ({"a_png": 1, "x__b_png": 1}, {}, ValueError, "subfolders are classes"),
    "sizes": (
        {"a_png": 1, "b_png": 2},
        {"size": None},
        ValueError,
        "is 8 x 8, .* 16 x",
    ),
    "size": ({"a_png": 1}, {"size": 0}, ValueError, "`size` must be at least 1"),
    "background": ({"a_png": 1}, {"background": 300}, ValueError, "in 0..255; got 300"),
}


@pytest.mark.parametrize("case", FOLDER_ERRORS)
def test_folders_that_are_none(case, tmp_path):
    files, options, kind, message = FOLDER_ERRORS[case]
    for name, factor in files.items():
        if factor is None:
            (tmp_path / "set" / "x").mkdir(parents=True)
        else:
            wide = Image.fromarray(np.repeat(GREY, factor, axis=1))
            write(tmp_path / "set", **{name: wide})
    with pytest.raises(kind, match=message):
        data.load_image_folder(tmp_path / "set", **options)
