"""Data of one's own: folders of images, arrays, tables, Python objects."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.data import DATA, Conditions, Example, register
from experiments.data.arrays import Arrays
from experiments.data.base import distances
from experiments.data.entry_forms import TableForm, VectorForm
from experiments.data.example_record import FORMS, decode_example, encode_example
from experiments.data.forms import ImageForm, PointForm
from experiments.data.images import Images
from experiments.data.records import RecordSet
from experiments.data.tables import Table
from flowjax import data, guidance
from flowjax.data import array_files, tables
from flowjax.data.tables import Column

# Rows by number


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_the_share_held_out_depends_on_the_number_alone(share):
    aside = data.held_out_rows(20_000, share=share)
    deviation = np.sqrt(share * (1 - share) / 20_000)
    assert abs(aside.mean() - share) <= 4 * deviation
    np.testing.assert_array_equal(data.held_out_rows(500, share=share), aside[:500])
    other = data.held_out_rows(20_000, share=share, seed=1)
    both = share**2
    tolerance = 4 * np.sqrt(both * (1 - both) / 20_000)
    assert abs((aside & other).mean() - both) <= tolerance


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": -1, "share": 0.1}, "`size` and `seed` must not be negative"),
        ({"size": 3, "share": 1.0}, r"`share` must lie in \[0, 1\); got 1.0"),
        ({"size": 3, "share": 0.1, "seed": -1}, "must not be negative"),
    ],
)
def test_the_share_held_out_is_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.held_out_rows(**arguments)


class Squares:
    """An object with a length and an item."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return {"x": np.full((2, 3), index, np.float32), "label": index % 2}


SOURCES = {
    "records": lambda: data.RecordRows(Squares()),
    "arrays": lambda: data.ArrayRows(
        {
            "x": np.arange(7.0)[:, None, None] * np.ones((2, 3)),
            "label": np.arange(7) % 2,
        }
    ),
    "selected": lambda: data.SelectedRows(
        data.RecordRows([Squares()[i] for i in (0, 9, 1, 2, 3, 9, 4, 5, 6)]),
        np.array([0, 2, 3, 4, 6, 7, 8]),
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_epoch_has_every_row_once(name):
    batches = data.row_batches(SOURCES[name](), batch_size=7, seed=3)
    orders = []
    for _ in range(3):
        batch = next(batches)
        assert batch["x"].shape == (7, 2, 3)
        numbers = batch["x"][:, 0, 0].astype(int)
        assert sorted(numbers) == list(range(7))
        np.testing.assert_array_equal(batch["label"], numbers % 2)
        orders.append(tuple(numbers))
    assert len(set(orders)) == 3


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (3, "`records` must have __len__; got int"),
        ([], "at least one record"),
        ([{"x": np.zeros(2)}, {"x": np.zeros(3)}], r"record 1 has {'x': \(3,\)}"),
    ],
)
def test_records_that_are_none(records, message, untyped):
    with pytest.raises(ValueError, match=message):
        data.RecordRows(records).gather([0, 1])


# Folders of images

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


# Files of arrays


@pytest.mark.parametrize("limit", [0, 2**28])
def test_arrays_are_the_same_mapped_or_read(limit, tmp_path, monkeypatch):
    monkeypatch.setattr(array_files, "IN_MEMORY_BYTES", limit)
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.normal(size=(5, 3)),
        "fortran": np.asfortranarray(rng.normal(size=(5, 3)).astype(np.float32)),
        "label": np.arange(5, dtype=np.int16),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    (tmp_path / "c").mkdir()
    for name, array in arrays.items():
        np.save(tmp_path / "c" / f"{name}.npy", array)
    for place in ("a.npz", "b.npz", "c"):
        opened = data.open_arrays(tmp_path / place)
        assert opened.keys() == arrays.keys()
        for name, array in opened.items():
            np.testing.assert_array_equal(array, arrays[name])
            mapped = limit == 0 and place != "b.npz"
            assert isinstance(array, np.memmap) == mapped
    assert list(data.open_arrays(tmp_path / "c" / "x.npy")) == ["x"]


@pytest.mark.parametrize("limit", [0, 2**28])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npz", None, "there is no file"),
        ("a.npz", b"no archive", r"a\.npz can't be read"),
        ("a.npy", b"\x93NUMPY\x01\x00garbage", r"a\.npy can't be read"),
        ("a.txt", b"1 2", "must end in .npz or .npy"),
        ("a.npz", np.array([{}], object), r"a\.npz can't be read"),
        ("a.npy", np.array([{}], object), r"a\.npy can't be read"),
    ],
)
def test_files_that_hold_no_arrays(
    name, content, message, limit, tmp_path, monkeypatch
):
    monkeypatch.setattr(array_files, "IN_MEMORY_BYTES", limit)
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        save = np.savez if name.endswith("z") else np.save
        save(path, content, allow_pickle=True)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        data.open_arrays(path)


# Tables

COLUMNS = {
    "numbers": np.array([1.5, -2.0, 7.25], object),
    "whole": np.array([3, -10, 4], object),
    "constant": np.array([2.5, 2.5, 2.5], object),
    "text": np.array(["b", "a", "b"], object),
    "truth": np.array([True, False, True], object),
    "gaps": np.array([1.0, None, 3.0], object),
    "text with gaps": np.array(["u", None, "v"], object),
}


def test_a_table_comes_back_as_it_was():
    columns = [tables.fit_column(n, v, missing="mask") for n, v in COLUMNS.items()]
    x = tables.encode_table(columns, COLUMNS)
    assert x.shape == (3, sum(column.width for column in columns))
    assert np.isfinite(x).all()
    back = tables.decode_table(columns, x)
    for name, values in COLUMNS.items():
        for value, restored in zip(values, back[name], strict=True):
            if isinstance(value, float):
                assert restored == pytest.approx(value, rel=1e-5)
            else:
                expected = value if value is None else tables.as_text(value)
                assert str(restored) == str(expected)


def test_numbers_are_standardised():
    column = tables.fit_column("a", COLUMNS["numbers"])
    numbers = column.encode(COLUMNS["numbers"])
    assert numbers.mean() == pytest.approx(0, abs=1e-6)
    assert numbers.std() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tables.fit_column("a", COLUMNS["gaps"]), "'a' lacks 1 of 3 .* row 1"),
        (lambda: tables.fit_column("a", np.array([None], object)), "no value at all"),
        (lambda: tables.fit_column("a", np.array([np.inf], object)), "infinite"),
        (
            lambda: Column(name="a", categories=("x",)).encode(np.array(["y"], object)),
            "row 0: 'y' is none of its 1 categories",
        ),
        (lambda: Column(name="a").encode(np.array([None], object)), "a missing value"),
        (lambda: tables.encode_table([Column(name="a")], {}), "the table lacks a"),
        (
            lambda: tables.decode_table([Column(name="a")], np.zeros((2, 3))),
            r"must have shape \[n, 1\]; got \(2, 3\)",
        ),
        (
            lambda: tables.fit_column(
                "a", np.array(list(map(str, range(1001))), object)
            ),
            "1001 different values",
        ),
    ],
)
def test_tables_are_checked(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_tables_are_read_from_every_kind_of_file(suffix, tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / f"t.{suffix}"
    if suffix == "parquet":
        columns = {name: list(values) for name, values in COLUMNS.items()}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    else:
        comma = {"csv": ",", "tsv": "\t"}[suffix]
        rows = zip(*COLUMNS.values(), strict=True)
        lines = [comma.join(COLUMNS)] + [
            comma.join("" if v is None else tables.as_text(v) for v in row)
            for row in rows
        ]
        path.write_text("\n".join(lines) + "\n")
    read = tables.read_table(path)
    for name, values in COLUMNS.items():
        assert read[name].tolist() == values.tolist()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", None, "there is no file"),
        ("t.csv", "", r"t\.csv can't be read"),
        ("t.csv", "a,b\n", "must have rows"),
        ("t.csv", "a,a\n1,2\n", "columns of different names"),
        ("t.csv", "a\n2020-01-01\n", "column 'a' holds date"),
        ("t.parquet", "text", r"t\.parquet can't be read"),
        ("t.xlsx", "text", "must end in .csv"),
    ],
)
def test_files_that_hold_no_table(name, text, message, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        tables.read_table(tmp_path / name)


# Data sets of an experiment


@pytest.fixture
def arrays(tmp_path):
    """A file with every kind of array."""
    rng = np.random.default_rng(0)
    n = 200
    arrays = {
        "vectors": 100 + 50 * rng.normal(size=(n, 3)),
        "sequences": rng.normal(size=(n, 8, 2)),
        "images": rng.integers(0, 256, size=(n, 8, 8, 3), dtype=np.uint8),
        "grey": rng.integers(0, 256, size=(n, 8, 8), dtype=np.uint8),
        "volumes": rng.normal(size=(n, 4, 4, 4, 1)),
        "label": rng.integers(0, 4, size=n),
        "number": 1000 * rng.normal(size=n),
        "numbers": rng.normal(size=(n, 2)),
        "masks": rng.normal(size=(n, 8, 8, 1)),
    }
    np.savez(tmp_path / "all.npz", **arrays)
    return str(tmp_path / "all.npz"), arrays


@pytest.mark.parametrize("x", ["vectors", "sequences", "images", "grey", "volumes"])
def test_arrays_of_any_shape_come_back_in_their_units(x, arrays):
    file, stored = arrays
    chosen = Arrays(file=file, x=x)
    example = chosen.example()
    parts = [chosen.draw(None, 0, held_out=aside)["x"] for aside in (False, True)]
    aside = data.held_out_rows(200, share=0.1)
    for part, rows in zip(parts, (~aside, aside), strict=True):
        assert part.dtype == np.float32
        assert part.shape[1:] == example.event
        restored = example.form.restore(part)
        np.testing.assert_allclose(
            restored.reshape(stored[x][rows].shape), stored[x][rows], atol=1e-3
        )
    if not isinstance(example.form, ImageForm):
        axes = tuple(range(parts[0].ndim - 1))
        np.testing.assert_allclose(parts[0].mean(axes), 0, atol=0.15)
        np.testing.assert_allclose(parts[0].std(axes), 1, atol=0.1)


def test_conditions_of_all_kinds_at_once(arrays):
    file, stored = arrays
    options = {"label": "label", "vector": ("number", "numbers"), "array": "masks"}
    chosen = Arrays(file=file, x="images", **options)
    conditions = chosen.example().conditions
    assert conditions.kinds == ("label", "vector", "array")
    assert conditions.names == ("number", "numbers[0]", "numbers[1]")
    assert conditions.options == {
        "num_classes": 4,
        "vector_features": 3,
        "array_channels": 1,
    }
    row = chosen.draw(None, 0, held_out=False)
    rows = ~data.held_out_rows(200, share=0.1)
    units = conditions.in_units(row)
    np.testing.assert_array_equal(units["label"], stored["label"][rows])
    np.testing.assert_allclose(units["vector"][:, 0], stored["number"][rows], atol=1e-2)
    scaled = conditions.scale(units["vector"][5])
    np.testing.assert_allclose(scaled, row["vector"][5], atol=1e-5)
    cond = conditions.join({k: jax.numpy.asarray(v) for k, v in row.items()})
    dropped = guidance.drop_condition(
        jax.random.key(0), cond, null=conditions.null, probability=0.5
    )
    gone = np.asarray(guidance.is_null(dropped, null=conditions.null))
    assert 0.3 < gone.mean() < 0.7
    np.testing.assert_array_equal(gone, ~np.asarray(dropped["given"]))
    assert not guidance.is_null(cond, null=conditions.null).any()
    zeros = conditions.zeros(2, (8, 8, 3))
    for name, leaf in zeros.items():
        assert (leaf.shape[1:], leaf.dtype) == (cond[name].shape[1:], cond[name].dtype)


def test_held_out_files_are_scaled_like_the_others(arrays, tmp_path):
    file, stored = arrays
    other = tmp_path / "other.npz"
    np.savez(other, vectors=stored["vectors"] + 7.0)
    chosen = Arrays(file=file, x="vectors", test_file=str(other))
    held, train = (chosen.draw(None, 0, held_out=aside)["x"] for aside in (True, False))
    assert len(held) == len(train) == 200
    np.testing.assert_allclose(
        chosen.example().form.restore(held) - chosen.example().form.restore(train),
        7.0,
        atol=1e-3,
    )


def test_a_table_conditions_on_its_columns(tmp_path):
    (tmp_path / "t.csv").write_text(
        "a,city,b\n" + "".join(f"{i},{'xyz'[i % 3]},{-i / 2}\n" for i in range(60))
    )
    chosen = Table(file=str(tmp_path / "t.csv"), label="city", vector=("b",))
    conditions = chosen.example().conditions
    assert (conditions.num_classes, conditions.names) == (3, ("b",))
    row = chosen.draw(None, 0, held_out=False)
    decoded = tables.decode_table(chosen.example().form.columns, row["x"])
    np.testing.assert_array_equal(np.array(decoded["a"]) % 3, row["label"])
    b = conditions.in_units(row)["vector"][:, 0]
    np.testing.assert_allclose(-2 * b, decoded["a"], atol=1e-4)


DATA_ERRORS = {
    "no such array": (Arrays, {"x": "nothing"}, "has no array nothing; it has vectors"),
    "which array": (Arrays, {}, "say which to learn: --data.x NAME"),
    "labels of floats": (Arrays, {"x": "vectors", "label": "number"}, "integer labels"),
    "array": (Arrays, {"x": "sequences", "array": "masks"}, "as the examples but for"),
    "vector": (
        Arrays,
        {"x": "images", "vector": ("masks",)},
        r"\[n\] or \[n, features",
    ),
    "share": (
        Arrays,
        {"x": "vectors", "test_share": 0.0},
        "--data.test-share must lie between 0 and 1",
    ),
    "lengths": (Arrays, {"x": "vectors", "label": "short"}, "one length"),
    "finite": (Arrays, {"x": "hole"}, "row 3, holds a number that is not finite"),
}


@pytest.mark.parametrize("case", DATA_ERRORS)
def test_data_sets_are_checked(case, arrays, tmp_path):
    kind, options, message = DATA_ERRORS[case]
    stored = dict(arrays[1])
    stored["short"] = stored["label"][:5]
    stored["hole"] = stored["vectors"].copy()
    stored["hole"][3, 1] = np.nan
    np.savez(tmp_path / "bad.npz", **stored)
    chosen = kind(file=str(tmp_path / "bad.npz"), **options)
    with pytest.raises(ValueError, match=message):
        chosen.draw(3, 0, held_out=True)


EXAMPLES = {
    "image_form": Example((8, 8, 1), Conditions(10), ImageForm(maximum=16)),
    "point_form": Example((2,), Conditions(), PointForm()),
    "vector_form": Example(
        (5, 2),
        Conditions(None, (), ("a", "b"), (0.5, 1.0), (2.0, 3.0), 4),
        VectorForm(mean=(0.0, 1.0), std=(2.0, 3.0)),
    ),
    "table_form": Example(
        (4,),
        Conditions(),
        TableForm(
            columns=(
                Column(name="n", mean=3.0),
                Column(name="c", categories=("a", "b", "c")),
            )
        ),
    ),
}


def test_every_form_has_an_example():
    assert EXAMPLES.keys() == FORMS.keys()
    assert {"images", "arrays", "table", "tfds", "digits"} <= DATA.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_a_run_stores_of_its_data_comes_back(name):
    example = EXAMPLES[name]
    assert decode_example(json.loads(json.dumps(encode_example(example)))) == example


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("spoil", ["event", "is", "conditions", "names"])
def test_what_a_run_stores_of_its_data_is_checked(name, spoil):
    stored = json.loads(json.dumps(encode_example(EXAMPLES[name])))
    if spoil == "event":
        stored["event"] = ["a"]
    elif spoil == "is":
        stored["form"]["is"] = "os.system"
    elif spoil == "conditions":
        stored["conditions"]["num_classes"] = -1
    else:
        stored["conditions"]["names"] = ["a", "b", "c"]
    with pytest.raises(ValueError, match=r".+"):
        decode_example(stored)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_form_draws_and_writes(name, tmp_path):
    example = EXAMPLES[name]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, *example.event)).astype(np.float32)
    row = {"label": np.arange(20) % 10} if example.conditions.num_classes else {}
    example.form.draw_groups({"real": x, "1-step": x}, row, tmp_path / "g.png")
    files = example.form.write(x, row, tmp_path / "s", "title")
    assert (tmp_path / "g.png").stat().st_size > 1000
    assert all(file.stat().st_size > 100 for file in files)
    if name == "table_form":
        back = tables.read_table(files[0])
        assert set(back["c"]) == {"a", "b", "c"}
    else:
        with np.load(files[0]) as archive:
            np.testing.assert_array_equal(archive["x"], example.form.restore(x))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_images_of_any_number_of_channels_are_drawn(channels, tmp_path):
    x = np.zeros((4, 6, 6, channels), np.float32)
    ImageForm().draw_samples("title", x, tmp_path / "a.png")
    assert (tmp_path / "a.png").is_file()


@pytest.mark.parametrize("maximum", [1, 16, 255])
def test_pixels_are_written_as_they_were_trained_on(maximum, tmp_path):
    form = ImageForm(maximum=maximum)
    levels = np.arange(maximum + 1, dtype=np.uint8).reshape(1, 1, -1, 1)
    x = levels.astype(np.float32) / (maximum / 2) - 1
    assert np.diff(x.ravel()) == pytest.approx(form.step, rel=1e-5)
    np.testing.assert_array_equal(form.restore(x), levels)
    outside = np.array([-3.0, 3.0, -1 - form.step / 3]).reshape(1, 1, 3, 1)
    assert form.restore(outside).ravel().tolist() == [0, maximum, 0]
    folder = form.write_each(x, tmp_path / "each")
    (file,) = folder.iterdir()
    shown = np.asarray(Image.open(file))[0]
    assert (shown[0], shown[-1]) == (0, 255)


FIGURES = {"sliced W2", "MMD2 x1000", "column W1", "C2ST"}


def test_entries_are_measured_one_by_one_and_together(arrays):
    file, _ = arrays
    chosen = Arrays(file=file, x="vectors", test_share=0.5)
    reference = chosen.example().form.reference(chosen, 100, 0)
    real = reference.measure(reference.real["x"])
    assert real.keys() >= FIGURES | {"correlation"}
    rng = np.random.default_rng(1)
    line = np.repeat(rng.normal(size=(100, 1)), 3, 1).astype(np.float32)
    tied = reference.measure(line)
    # The same marginals, another joint law.
    assert tied["correlation"] > 0.8 > 0.3 > real["correlation"]
    assert tied["C2ST"] > 0.8 > 0.65 > real["C2ST"]
    moved = reference.measure(reference.real["x"] + 1)
    assert moved["column W1"] == pytest.approx(1, abs=0.3)


def own_images(tmp_path, count=40):
    rng = np.random.default_rng(0)
    for i in range(count):
        image = Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8))
        write(tmp_path / "set", **{f"{'ab'[i % 2]}__{i}_png": image})
    return str(tmp_path / "set")


def test_images_without_labels_are_measured_too(tmp_path):
    folder = own_images(tmp_path)
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, file in enumerate(sorted((tmp_path / "set").rglob("*.png"))):
        shutil.copy(file, flat / f"{i}.png")
    labelled, plain = (Images(folder=str(f), size=8) for f in (folder, flat))
    assert labelled.example().conditions.num_classes == 2
    assert plain.example().conditions.kinds == ()
    reference = (
        dataclasses.replace(plain, test_share=0.5)
        .example()
        .form.reference(dataclasses.replace(plain, test_share=0.5), 20, 0)
    )
    figures = reference.measure(reference.real["x"])
    assert "agreement" not in figures
    assert figures["Fréchet"] > 0


def test_a_python_object_is_a_data_set_under_its_name():
    register("squares", Squares(), num_classes=2)
    chosen = RecordSet(name="squares", test_share=0.4)
    example = chosen.example()
    assert (example.event, example.conditions.num_classes) == ((2, 3), 2)
    row = chosen.draw(None, 0, held_out=False)
    restored = example.form.restore(row["x"])[:, 0, 0]
    np.testing.assert_allclose(restored % 2, row["label"], atol=1e-5)
    held = chosen.draw(None, 0, held_out=True)
    assert len(held["x"]) + len(row["x"]) == 7
    with pytest.raises(ValueError, match="no object is registered as 'other'"):
        RecordSet(name="other").example()
    with pytest.raises(ValueError, match="exactly if num_classes"):
        register("squares", Squares())


@pytest.mark.parametrize(
    ("count", "share", "side"), [(60, 0.05, "to be held out"), (30, 0.9, "to train on")]
)
def test_too_few_examples_are_refused_before_any_work(count, share, side):
    register("few", [{"x": np.ones(2) * i} for i in range(count)])
    chosen = RecordSet(name="few", test_share=share)
    with pytest.raises(
        ValueError, match=f"at least 10 examples are needed {side}; got"
    ):
        chosen.check()
    RecordSet(name="few", test_share=0.5).check()


def test_a_run_folder_gives_back_what_is_trained(arrays, tmp_path):
    """What could not be read again is refused before the first step, or is fine."""
    volumes = np.zeros((40, 4, 4, 4, 1), np.uint8)
    np.savez(tmp_path / "v.npz", x=volumes)
    example = Arrays(file=str(tmp_path / "v.npz")).example()
    assert isinstance(example.form, VectorForm)
    assert decode_example(encode_example(example)) == example
    labels = np.where(np.arange(40) % 2, 10**6, 0)
    np.savez(tmp_path / "l.npz", x=np.ones((40, 2)), y=labels)
    with pytest.raises(ValueError, match="number the classes one after the other"):
        Arrays(file=str(tmp_path / "l.npz"), label="y").example()


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32", "uint16", "bool"])
def test_arrays_come_back_in_their_dtype(dtype, tmp_path):
    x = (np.arange(120).reshape(60, 2) % 7).astype(dtype)
    np.savez(tmp_path / "x.npz", x=x)
    chosen = Arrays(file=str(tmp_path / "x.npz"), test_share=0.5)
    row = chosen.draw(None, 0, held_out=False)
    restored = chosen.example().form.restore(row["x"])
    assert restored.dtype == dtype
    kept = x[~data.held_out_rows(60, share=0.5)]
    np.testing.assert_allclose(restored.astype(float), kept.astype(float), atol=1e-2)


def test_large_numbers_lose_nothing_on_the_way_back(tmp_path):
    x = 1.7e9 + np.arange(60.0)[:, None]
    np.save(tmp_path / "x.npy", x)
    chosen = Arrays(file=str(tmp_path / "x.npy"))
    row = chosen.draw(None, 0, held_out=False)
    restored = chosen.example().form.restore(row["x"])
    kept = x[~data.held_out_rows(60, share=0.1)]
    np.testing.assert_allclose(restored, kept, atol=1e-3)
    chosen.example().form.draw_samples("title", row["x"], tmp_path / "a.png")


@pytest.mark.parametrize(
    "labels",
    [np.arange(60) % 2 == 0, (np.arange(60) % 3)[:, None], np.arange(60.0) % 3],
)
def test_labels_may_be_written_otherwise(labels, tmp_path):
    mask = np.ones((60, 4, 4), bool)
    np.savez(tmp_path / "x.npz", x=np.ones((60, 4, 4, 1)), y=labels, mask=mask)
    chosen = Arrays(file=str(tmp_path / "x.npz"), x="x", label="y", array="mask")
    row = chosen.draw(5, 0, held_out=False)
    assert (row["label"].shape, row["label"].dtype) == ((5,), np.int32)
    assert row["array"].shape == (5, 4, 4, 1)


@pytest.mark.parametrize(
    ("train", "held", "message"),
    [
        (np.uint8, np.float32, "of the kind of"),
        (np.float32, np.uint8, "of the kind of"),
    ],
)
def test_held_out_files_of_another_kind_are_refused(train, held, message, tmp_path):
    for name, dtype in (("a", train), ("b", held)):
        np.savez(tmp_path / f"{name}.npz", x=np.ones((20, 4, 4, 1), dtype))
    chosen = Arrays(file=str(tmp_path / "a.npz"), test_file=str(tmp_path / "b.npz"))
    with pytest.raises(ValueError, match=message):
        chosen.check()


def test_held_out_folders_have_the_same_classes(tmp_path):
    image = Image.fromarray(COLOR)
    folder = write(tmp_path / "a", cat__1_png=image, dog__1_png=image)
    other = write(tmp_path / "b", cat__1_png=image, zebra__1_png=image)
    chosen = Images(folder=str(folder), size=8)
    assert chosen.example().conditions.classes == ("cat", "dog")
    with pytest.raises(ValueError, match="zebra"):
        dataclasses.replace(chosen, test_folder=str(other)).example()


def test_labels_are_called_by_name_or_number():
    conditions = Conditions(3, ("cat", "dog", "7"))
    assert [conditions.label_of(text) for text in ("dog", "0", "7")] == [1, 0, 2]
    with pytest.raises(ValueError, match="no label is called 'cow'; they are cat, dog"):
        conditions.label_of("cow")
    with pytest.raises(ValueError, match=r"in 0\.\.2; got 9"):
        conditions.label_of("9")


def test_conditions_come_back_as_their_columns(tmp_path):
    """Also where a learned column is called as a condition."""
    text = "label,city,age,job\n" + "".join(
        f"{i / 2},{'xyz'[i % 3]},{20 + i},{'ab'[i % 2]}\n" for i in range(60)
    )
    (tmp_path / "t.csv").write_text(text)
    options = {"label": "city", "vector": ("age", "job")}
    chosen = Table(file=str(tmp_path / "t.csv"), **options)
    example, row = chosen.example(), chosen.draw(None, 0, held_out=False)
    conditions = example.conditions.in_units(row)
    (file, _) = example.form.write(row["x"], conditions, tmp_path / "s", "title")
    back, kept = tables.read_table(file), ~data.held_out_rows(60, share=0.1)
    whole = tables.read_table(tmp_path / "t.csv")
    for name in ("city", "job"):
        assert back[name].tolist() == whole[name][kept].tolist()
    for name in ("label", "age"):
        np.testing.assert_allclose(
            back[name].astype(float), whole[name][kept].astype(float), rtol=1e-4
        )
    chosen = Table(file=str(tmp_path / "t.csv"), columns=("age",))
    assert [c.name for c in chosen.example().form.columns] == ["age"]


SEMICOLONS = "a;b\n" + "".join(f"{i};{i}\n" for i in range(60))
STRAY = "a\n" + "".join(f"{i}\n" for i in range(59)) + "?\n"


@pytest.mark.parametrize("text", [SEMICOLONS, STRAY])
def test_text_that_is_no_category_is_refused(text, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=r"different values in 60 rows.*no categories"):
        Table(file=str(tmp_path / "t.csv")).example()


@pytest.mark.parametrize("zeros", [0.95, 1.0])
def test_repeated_rows_are_measured(zeros):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)) * (rng.random((200, 1)) > zeros)
    figures = distances(x, x[::-1], jax.random.key(0))
    assert np.isnan(figures["MMD2 x1000"]) == (zeros == 1.0)
    assert figures["sliced W2"] < 1e-5


def test_what_is_registered_is_checked():
    good = [{"x": np.ones(2) * i, "label": i % 2} for i in range(30)]
    cases = [
        (good, {"num_classes": 1}, r"must lie in 0\.\.0; got values from 0 to 1"),
        (good, {"num_classes": "2"}, "num_classes must be a positive integer; got '2'"),
        ([(1, 2)] * 3, {}, "got a tuple of 2"),
        (
            good,
            {"num_classes": 2, "held_out": [{"x": np.ones(3), "label": 0}]},
            "must have shape",
        ),
    ]
    for records, options, message in cases:
        with pytest.raises(ValueError, match=message):
            register("bad", records, **options)


def test_other_data_of_the_same_look_have_another_fingerprint(tmp_path):
    seen = set()
    for seed, count in ((0, 60), (1, 60), (0, 70)):
        images = np.random.default_rng(seed).integers(0, 9, (70, 4, 4, 1), np.uint8)
        np.savez(tmp_path / f"{seed}{count}.npz", x=images[:count])
        seen.add(Arrays(file=str(tmp_path / f"{seed}{count}.npz")).fingerprint())
    assert len(seen) == 3
    again = Arrays(file=str(tmp_path / "060.npz")).fingerprint()
    assert again in seen


def test_measuring_never_holds_the_whole_training_set(monkeypatch):
    """Of a large set the classifier sees a part: all as floats would not fit."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (300, 4, 4, 1), dtype=np.uint8)
    register(
        "many", [{"x": x, "label": i % 2} for i, x in enumerate(images)], num_classes=2
    )
    chosen, counts = RecordSet(name="many"), []
    draw = RecordSet.draw

    def counted(self, count, seed, *, held_out):
        row = draw(self, count, seed, held_out=held_out)
        counts.append(len(row["x"]))
        return row

    monkeypatch.setattr(RecordSet, "draw", counted)
    monkeypatch.setattr("experiments.data.forms._LARGEST_FIT", 40 * 4 * 4 * 4)
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        chosen.example().form.reference(chosen, 30, 0)
    assert max(counts) == 40
