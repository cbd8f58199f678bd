"""Data of one's own: folders of images, arrays, tables, Python objects."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.data import Conditions, register
from experiments.data.arrays import Arrays
from experiments.data.base import distances
from experiments.data.entry_forms import VectorForm
from experiments.data.example_record import decode_example, encode_example
from experiments.data.forms import ImageForm
from experiments.data.images import Images
from experiments.data.records import RecordSet
from experiments.data.tables import Table
from flowjax import data, guidance
from flowjax.data import tables
from tests.test_image_folders import COLOR, write
from tests.test_rows import Squares


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
