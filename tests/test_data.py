"""Densities against their moments and supports; image sets against their records."""

import collections
import functools
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowjax.data
from flowjax.data import (
    DENSITIES,
    BatchIterator,
    ImageSource,
    array_batches,
    checkerboard,
    eight_gaussians,
    get_density,
    image_batches,
    index_batches,
    load_arrays,
    load_source,
    rings,
    s_curve,
    spirals,
    two_moons,
)

SAMPLES = 100_000

# name -> (mean, covariance) in closed form; the noise levels are the defaults.
MOMENTS = {
    "eight_gaussians": ((0, 0), (0.98 + 0.14**2, 0.98 + 0.14**2, 0)),
    "two_moons": ((0, 0), (1.5 + 0.01, 9 / 8 - 2 / math.pi + 0.01, None)),
    "checkerboard": ((0, 0), (1, 1, 3 / 16)),
    "s_curve": (
        (0, 0),
        (0.81 / 2 + 0.05**2, 0.81 * (1.5 + 4 / (3 * math.pi)) + 0.05**2, None),
    ),
    "spirals": ((0, 0), (None, None, None)),
    "rings": ((0, 0), (15 / 16 + 0.05**2, 15 / 16 + 0.05**2, 0)),
}


def quadrature(name):
    """Return E[x^2], E[y^2], E[xy] of a noise-free curve by the midpoint rule."""
    u = (np.arange(100_000) + 0.5) / 100_000
    if name == "two_moons":
        angle = np.pi * u
        x, y = np.sqrt(2) * (np.cos(angle) - 0.5), np.sqrt(2) * (np.sin(angle) - 0.25)
    elif name == "s_curve":
        angle = 3 * np.pi * (u - 0.5)
        x, y = 0.9 * np.sin(angle), 0.9 * np.sign(angle) * (np.cos(angle) - 1)
    else:
        angle, radius = 3 * np.pi * np.sqrt(u), 2 * np.sqrt(u)
        x, y = radius * np.cos(angle), radius * np.sin(angle)
    return np.mean(x * x), np.mean(y * y), np.mean(x * y)


def sample(draw, key, batch, **options):
    """Draw under jit, which compiles once instead of once per operation."""
    draw = functools.partial(draw, **options)
    return np.asarray(jax.jit(draw, static_argnums=1)(key, batch), np.float64)


def assert_within(samples, expected, sigmas=5.0):
    """Compare a Monte-Carlo mean with its value, in units of its standard error."""
    error = samples.std() / math.sqrt(len(samples))
    assert abs(samples.mean() - expected) <= sigmas * error + 1e-12


@pytest.mark.parametrize("name", DENSITIES)
def test_density_has_the_moments_of_its_formula(name, x64, key):
    points = sample(get_density(name), key, SAMPLES)
    x, y = points.T
    (mean_x, mean_y), (var_x, var_y, cov) = MOMENTS[name]
    if cov is None:
        noise = 0.1 if name == "two_moons" else 0.05
        square_x, square_y, product = quadrature(name)
        if var_x is not None:
            np.testing.assert_allclose(square_x + noise**2, var_x, rtol=1e-8)
            np.testing.assert_allclose(square_y + noise**2, var_y, rtol=1e-8)
        var_x, var_y, cov = square_x + noise**2, square_y + noise**2, product
    assert_within(x, mean_x)
    assert_within(y, mean_y)
    assert_within(x * x, var_x)
    assert_within(y * y, var_y)
    assert_within(x * y, cov)
    assert 0.8 < math.sqrt((var_x + var_y) / 2) < 1.2


@pytest.mark.parametrize("name", DENSITIES)
def test_density_rows_are_independent(name, key):
    x, y = sample(get_density(name), key, SAMPLES).T
    for a, b in ((x[1:], x[:-1]), (y[1:], y[:-1]), (x[1:], y[:-1])):
        assert_within(a * b, 0.0)
    # Neither half of the batch is special, as it would be in a stratified draw.
    assert len(np.unique(x)) > 0.9 * SAMPLES
    assert_within(x[: SAMPLES // 2] ** 2, np.mean(x**2), sigmas=8.0)


@pytest.mark.parametrize("name", DENSITIES)
def test_density_under_jit_and_in_both_precisions(name, key):
    draw = get_density(name)
    jitted = jax.jit(draw, static_argnums=1)
    points = jitted(key, 7)
    assert points.shape == (7, 2)
    assert points.dtype == jnp.float32
    np.testing.assert_allclose(points, draw(key, 7), rtol=1e-5, atol=1e-6)
    assert not np.allclose(points, jitted(jax.random.fold_in(key, 1), 7))
    with jax.enable_x64(True):
        assert jitted(key, 1).dtype == jnp.float64


def test_eight_gaussians_are_eight_equal_gaussians(x64, key):
    points = sample(eight_gaussians, key, SAMPLES, radius=3.0, std=0.1)
    angles = np.arange(8) * np.pi / 4
    centres = 3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    offsets = points[:, None] - centres
    nearest = np.argmin((offsets**2).sum(-1), axis=1)
    for component in range(8):
        assert_within((nearest == component).astype(float), 1 / 8)
        own = offsets[nearest == component, component]
        assert_within(own[:, 0] ** 2, 0.01)
        assert_within(own[:, 0] * own[:, 1], 0.0)


def test_checkerboard_fills_the_dark_squares_and_no_other(x64, key):
    points = sample(checkerboard, key, SAMPLES)
    cells = points / (math.sqrt(3) / 2) + 2
    assert (cells >= 0).all()
    assert (cells < 4).all()
    squares = np.floor(cells).astype(int)
    assert (squares.sum(axis=1) % 2 == 0).all()
    for i in range(4):
        for j in range(i % 2, 4, 2):
            assert_within((squares == (i, j)).all(axis=1).astype(float), 1 / 8)
    assert_within((cells % 1)[:, 0], 0.5)
    assert_within((cells % 1)[:, 1], 0.5)


def test_rings_have_four_radii(x64, key):
    radii = np.linalg.norm(sample(rings, key, 4000, noise=0.0), axis=1)
    np.testing.assert_allclose(radii, np.round(2 * radii) / 2, atol=1e-12)
    for ring in (1, 2, 3, 4):
        assert_within((np.round(2 * radii) == ring).astype(float), 1 / 4)


def test_curves_without_noise(x64, key):
    x, y = sample(two_moons, key, 1000, noise=0.0).T / math.sqrt(2)
    upper = np.hypot(x + 0.5, y + 0.25)
    lower = np.hypot(x - 0.5, y - 0.25)
    on_upper = np.isclose(upper, 1) & (y >= -0.25 - 1e-9)
    on_lower = np.isclose(lower, 1) & (y <= 0.25 + 1e-9)
    assert (on_upper | on_lower).all()
    assert_within(on_upper.astype(float), 0.5)

    x, y = sample(s_curve, key, 1000, noise=0.0).T / 0.9
    np.testing.assert_allclose(x**2 + (np.abs(y) - 1) ** 2, 1, atol=1e-12)

    x, y = sample(spirals, key, 1000, noise=0.0).T
    radius = np.hypot(x, y) / 2
    tangent = np.cos(3 * np.pi * radius) * y - np.sin(3 * np.pi * radius) * x
    np.testing.assert_allclose(tangent, 0, atol=1e-9)
    assert radius.max() <= 1
    side = np.cos(3 * np.pi * radius) * x + np.sin(3 * np.pi * radius) * y
    assert_within((side > 0).astype(float), 0.5)


def test_density_errors(key):
    with pytest.raises(ValueError, match=r"eight_gaussians, two_moons.*got 'moon'"):
        get_density("moon")
    for draw in DENSITIES.values():
        with pytest.raises(ValueError, match="`batch` must be at least 1; got 0"):
            draw(key, 0)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A data directory with the digits and a set of 7 colour images stored as PNG."""
    from flowjax.data import digits

    root = tmp_path_factory.mktemp("tfds")
    digits.prepare(root)
    prepare_tiny_images(root)
    return root


def tiny_records():
    images = np.random.default_rng(0).integers(0, 256, (7, 5, 4, 3), np.uint8)
    return images, np.arange(7) % 3


def prepare_tiny_images(root):
    import PIL.Image
    import tensorflow_datasets as tfds

    class TinyImages(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        name = "tiny_images"

        def _info(self):
            features = {
                "id": tfds.features.Scalar(np.int64),
                "image": tfds.features.Image(shape=(5, 4, 3)),
                "label": tfds.features.ClassLabel(num_classes=3),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, (image, label) in enumerate(zip(*tiny_records(), strict=True)):
                row = {"image": PIL.Image.fromarray(image), "label": int(label)}
                yield i, {"id": i, **row}

    TinyImages(data_dir=root, file_format="array_record").download_and_prepare()


def test_digits_keep_every_image_in_a_fixed_stratified_split(data_dir):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    train = load_source("digits", "train", data_dir=data_dir)
    test = load_source("digits", "test", data_dir=data_dir)
    assert (len(train), len(test)) == (1500, 297)
    assert (train.image_shape, train.num_classes, train.maximum) == ((8, 8, 1), 10, 16)
    assert set(train[0]) == {"image", "label"}

    found = collections.Counter()
    for source in (train, test):
        images, labels = source.gather(range(len(source)))
        assert images.dtype == np.uint8
        assert labels.dtype == np.int32
        rows = zip(images, labels, strict=True)
        found.update((image.tobytes(), int(label)) for image, label in rows)
        share = np.bincount(bunch.target) * len(source) / 1797
        assert np.abs(np.bincount(labels) - share).max() <= 1
    pixels = bunch.images.astype(np.uint8)
    pairs = zip(pixels, bunch.target, strict=True)
    assert found == collections.Counter((i.tobytes(), int(k)) for i, k in pairs)
    # The split belongs to the version of the set: these images must never change.
    digest = hashlib.sha256(test.gather(range(297))[0].tobytes()).hexdigest()
    assert digest == "df9f323b7cb81e334d2afa9c52e2d4e3d784b5409ad99a0d93b207826ec7ce4b"


def test_digits_prepare_again_is_silent_and_changes_nothing(tmp_path, capfd):
    from flowjax.data import digits

    path = digits.prepare(tmp_path)
    before = {f: os.stat(os.path.join(path, f)).st_mtime_ns for f in os.listdir(path)}
    assert digits.prepare(tmp_path) == path
    after = {f: os.stat(os.path.join(path, f)).st_mtime_ns for f in os.listdir(path)}
    assert before == after
    assert os.listdir(tmp_path) == ["sklearn_digits"]
    assert capfd.readouterr() == ("", "")


def test_digits_survive_a_quicker_process_and_an_interrupted_one(tmp_path, monkeypatch):
    from flowjax.data import digits

    publish = digits._publish

    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(digits, "_publish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        digits.prepare(tmp_path)
    assert not list(tmp_path.rglob("*.array_record*"))

    def beaten(source, target):
        shutil.copytree(source, target)
        publish(source, target)

    # What a killed process leaves behind is not read.
    (tmp_path / "incomplete.dead" / "sklearn_digits" / "1.0.0").mkdir(parents=True)
    monkeypatch.setattr(digits, "_publish", beaten)
    digits.prepare(tmp_path)
    assert len(load_source("digits", "test", data_dir=tmp_path)) == 297

    def failing(source, target):
        publish(tmp_path / "nowhere", target)

    monkeypatch.setattr(digits, "_publish", failing)
    with pytest.raises(OSError, match="nowhere"):
        digits.prepare(tmp_path / "other")


@pytest.mark.parametrize(
    "lost", ["features.json", "dataset_info.json", "*-test.array_record*", "*"]
)
def test_digits_that_are_prepared_in_part_are_prepared_again(lost, tmp_path):
    from flowjax.data import digits

    place = Path(digits.prepare(tmp_path))
    for file in place.glob(lost):
        file.unlink()
    assert digits.prepare(tmp_path) == str(place)
    source = load_source("digits", "test", data_dir=tmp_path)
    assert len(source) == digits.NUM_TEST
    assert len(list(place.parent.glob("damaged.*"))) == 1


@pytest.mark.slow
def test_digits_race_of_processes_with_equal_seeds(tmp_path):
    code = (
        "import random, sys; random.seed(0); from flowjax.data import load_source;"
        "print(len(load_source('digits', 'train', data_dir=sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    assert [run.communicate(timeout=120)[0] for run in runs] == [b"1500\n"] * 3
    assert os.listdir(tmp_path) == ["sklearn_digits"]


def test_import_is_lazy_and_reading_needs_no_tensorflow(data_dir):
    code = (
        "import sys; import flowjax.data as data\n"
        "lazy = {'grain', 'tensorflow_datasets', 'sklearn', 'array_record', 'flax'}\n"
        "assert not lazy & set(sys.modules), lazy & set(sys.modules)\n"
        "for name, size in (('digits', 1500), ('tiny_images', 7)):\n"
        "    source = data.load_source(name, 'train', data_dir=sys.argv[1])\n"
        "    assert len(source) == size\n"
        "assert 'tensorflow' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(data_dir)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("module", ["tensorflow_datasets", "array_record"])
def test_sources_name_the_missing_extra(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "flowjax.data.digits", raising=False)
    monkeypatch.delattr(flowjax.data, "digits", raising=False)
    message = rf"`{module}` is not installed.*pip install .*'tensorflow-datasets"
    with pytest.raises(ImportError, match=message):
        load_source("digits", "train")


def test_digits_and_batches_name_the_missing_extra(monkeypatch, tmp_path):
    for module in ("sklearn.datasets", "grain"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ImportError, match=r"`sklearn.datasets` is not inst.*'scikit-learn>="
    ):
        load_source("digits", "train", data_dir=tmp_path)
    with pytest.raises(ImportError, match=r"`grain` is not installed.*'grain>="):
        index_batches(batch_size=2)


@pytest.mark.parametrize("in_memory", [True, False])
def test_source_reads_prepared_images(data_dir, in_memory):
    images, labels = tiny_records()
    source = load_source("tiny_images", "train", data_dir=data_dir, in_memory=in_memory)
    assert (source.image_shape, source.num_classes, source.maximum) == (
        (5, 4, 3),
        3,
        255,
    )
    np.testing.assert_array_equal(source[4]["image"], images[4])
    assert source[4]["label"] == labels[4]
    got_images, got_labels = source.gather([6, 0, 0])
    np.testing.assert_array_equal(got_images, images[[6, 0, 0]])
    np.testing.assert_array_equal(got_labels, labels[[6, 0, 0]])
    part = load_source("tiny_images", "train[2:5]", data_dir=data_dir)
    np.testing.assert_array_equal(part.gather(range(3))[0], images[2:5])


def test_load_arrays_scales_to_the_unit_range(data_dir):
    images, labels = load_arrays("digits", "train", data_dir=data_dir)
    assert images.shape == (1500, 8, 8, 1)
    assert (images.min(), images.max()) == (-1, 1)
    raw, raw_labels = load_source("digits", "train", data_dir=data_dir).gather(
        range(1500)
    )
    np.testing.assert_array_equal(images, raw / np.float32(8) - 1)
    np.testing.assert_array_equal(labels, raw_labels)
    assert (images.dtype, labels.dtype) == (np.float32, np.int32)
    images, _ = load_arrays("tiny_images", "train", data_dir=data_dir)
    expected = tiny_records()[0] / 127.5 - 1
    np.testing.assert_allclose(images, expected, atol=1e-6)


def test_source_errors(data_dir, tmp_path):
    command = r"flowjax.data.prepare_image_set\('mnist', data_dir="
    with pytest.raises(FileNotFoundError, match=command):
        load_source("mnist", "train", data_dir=data_dir)
    with pytest.raises(ValueError, match=r"'digits' or an image set.*got 'mnits'"):
        load_source("mnits", "train", data_dir=data_dir)
    with pytest.raises(ValueError, match="Unknown split 'dev'"):
        load_source("digits", "dev", data_dir=data_dir)

    place = shutil.copytree(data_dir / "tiny_images", tmp_path / "tiny_images")
    path = place / "1.0.0" / "dataset_info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match=r"stored as tfrecord; prepare it as array_re"):
        load_source("tiny_images", "train", data_dir=tmp_path)


def test_sets_without_labelled_images_of_one_size_are_refused():
    import tensorflow_datasets as tfds

    from flowjax.data.image_sets import labelled_images

    image, label = tfds.features.Image, tfds.features.ClassLabel(num_classes=2)
    bad = [
        {"label": label},
        {"image": image(shape=(4, 4, 3))},
        {"image": image(shape=(None, None, 3)), "label": label},
        {"image": image(shape=(4, 4, 1), dtype=np.uint16), "label": label},
    ]
    for features in (*map(tfds.features.FeaturesDict, bad), tfds.features.Text()):
        with pytest.raises(ValueError, match="`x` must have uint8 images of one size"):
            labelled_images("x", features)


def numbered(size, width=2):
    """Return a source whose image shows its own number on the left, 0 on the right."""
    images = np.zeros((size, 1, width, 1), np.uint8)
    images[:, :, 0, 0] = np.arange(1, size + 1)[:, None]
    records = [{"image": image, "label": i} for i, image in enumerate(images)]
    return ImageSource(records, (1, width, 1), size)


def take(iterator, count, name="label"):
    return np.stack([next(iterator)[name] for _ in range(count)])


def test_every_epoch_is_a_new_permutation():
    stream = take(image_batches(numbered(10), batch_size=4, seed=0), 15).ravel()
    epochs = stream.reshape(6, 10)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(10), (6, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 6
    other = take(image_batches(numbered(10), batch_size=4, seed=1), 15).ravel()
    assert (stream != other).any()


def test_a_batch_may_exceed_the_set():
    stream = take(image_batches(numbered(3), batch_size=12, seed=0), 2).reshape(8, 3)
    np.testing.assert_array_equal(np.sort(stream), np.tile(np.arange(3), (8, 1)))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_draw_the_batch_of_one(count):
    options = {"batch_size": 8, "seed": 3, "flip": True}
    whole = image_batches(numbered(21), **options)
    parts = [
        image_batches(numbered(21), process_index=i, process_count=count, **options)
        for i in range(count)
    ]
    for _ in range(6):
        expected, shares = next(whole), [next(part) for part in parts]
        for name in ("image", "label"):
            got = np.concatenate([share[name] for share in shares])
            np.testing.assert_array_equal(got, expected[name])
            assert len(shares[0][name]) == 8 // count


@pytest.mark.parametrize("num_threads", [0, 2])
@pytest.mark.parametrize("consumed", [0, 5])
def test_batches_resume_bit_exactly(num_threads, consumed, data_dir):
    source = load_source("digits", "train", data_dir=data_dir)

    def start():
        return image_batches(
            source, batch_size=400, seed=0, flip=True, num_threads=num_threads
        )

    iterator, restored = start(), start()
    assert isinstance(iterator, BatchIterator)
    for _ in range(consumed):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = [next(iterator) for _ in range(5)]
    next(restored)
    restored.set_state(state)
    for batch in expected:
        again = next(restored)
        assert again.keys() == batch.keys() == {"image", "label"}
        for name in batch:
            np.testing.assert_array_equal(again[name], batch[name])
    assert expected[0]["image"].shape == (400, 8, 8, 1)
    assert (expected[0]["image"].dtype, expected[0]["label"].dtype) == (
        np.float32,
        np.int32,
    )


def test_state_passes_through_the_checkpoint_handler_of_grain(tmp_path):
    import grain
    from etils import epath

    handler = grain.checkpoint.CheckpointHandler()
    for start in (
        lambda: image_batches(numbered(9), batch_size=4, seed=0),
        lambda: index_batches(batch_size=4),
    ):
        iterator = start()
        next(iterator)
        handler.save(epath.Path(tmp_path), iterator)
        expected = next(iterator)
        again = next(handler.restore(epath.Path(tmp_path), start()))
        for name in expected:
            np.testing.assert_array_equal(again[name], expected[name])


def test_memory_and_disk_serve_the_same_batches(data_dir):
    streams = [
        image_batches(
            load_source("tiny_images", "train", data_dir=data_dir, in_memory=in_memory),
            batch_size=5,
            seed=1,
            flip=True,
        )
        for in_memory in (True, False)
    ]
    for _ in range(4):
        memory, disk = map(next, streams)
        np.testing.assert_array_equal(memory["image"], disk["image"])
        np.testing.assert_array_equal(memory["label"], disk["label"])


def test_flips_mirror_the_width_of_half_the_images_anew_each_epoch():
    source = numbered(200)
    batches = image_batches(source, batch_size=200, seed=0, flip=True)
    flips = []
    for _ in range(20):
        batch = next(batches)
        plain = source.scale(source.gather(batch["label"].tolist())[0])
        same = (batch["image"] == plain).all(axis=(1, 2, 3))
        mirrored = (batch["image"] == plain[:, :, ::-1]).all(axis=(1, 2, 3))
        assert (same ^ mirrored).all()
        flips.append(mirrored[np.argsort(batch["label"])])
    flips = np.array(flips, float)
    assert_within(flips.ravel(), 0.5)
    # Independent of the record and of the epoch: no row and no column is constant.
    assert 0 < flips.std(axis=0).min()
    assert 0 < flips.std(axis=1).min()

    plain = next(image_batches(source, batch_size=200, seed=0))
    assert (plain["image"][:, :, 1] == -1).all()


@pytest.mark.parametrize("maximum", [16, 255])
def test_scale_is_exact_at_both_ends(maximum):
    source = ImageSource([], (1, 1, 1), 2, maximum)
    levels = np.arange(maximum + 1, dtype=np.uint8).reshape(-1, 1, 1, 1)
    scaled = source.scale(levels)
    assert scaled.dtype == np.float32
    assert (scaled[0], scaled[-1]) == (-1, 1)
    assert (np.diff(scaled.ravel()) > 0).all()


def test_index_batches_count_the_examples_of_all_processes():
    whole = index_batches(batch_size=6)
    np.testing.assert_array_equal(take(whole, 3, "index"), np.arange(18).reshape(3, 6))
    part = index_batches(batch_size=6, process_index=1, process_count=2)
    first = next(part)["index"]
    assert first.dtype == np.uint32
    np.testing.assert_array_equal(first, [3, 4, 5])
    np.testing.assert_array_equal(next(part)["index"], [9, 10, 11])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 6, "process_index": 0, "process_count": 4}, "multiple of .*=4"),
        ({"batch_size": 0}, "`batch_size` must be a positive multiple"),
        ({"process_index": 2, "process_count": 2}, "`process_index` must lie in"),
        ({"process_index": -1, "process_count": 2}, "`process_index` must lie in"),
        ({"num_threads": -1}, "`num_threads` must not be negative; got -1"),
        ({"seed": -1}, "`seed` must not be negative; got -1"),
        ({"source": ImageSource([], (1, 1, 1), 1)}, "at least one record"),
    ],
)
def test_batch_errors(options, message):
    defaults = {"source": numbered(5), "batch_size": 4, "seed": 0}
    with pytest.raises(ValueError, match=message):
        image_batches(**{**defaults, **options})


def test_prepare_data_command(data_dir, capsys, monkeypatch):
    from experiments import prepare_data

    for name in ("digits", "tiny_images"):
        prepare_data.main(name, data_dir=data_dir)
    shown = capsys.readouterr().out
    assert f"digits is in {data_dir}" in shown
    assert "train: 1500, test: 297" in shown
    assert "train: 7" in shown
    with pytest.raises(SystemExit, match="got 'mnits'"):
        prepare_data.main("mnits", data_dir=data_dir)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(
        SystemExit, match=r"`tensorflow` is not installed.*'tensorflow>="
    ):
        prepare_data.main("mnist", data_dir=data_dir)


def test_array_batches_visit_every_row_once_an_epoch_and_keep_rows_together():
    arrays = {"x": np.arange(10.0), "label": np.arange(10) * 2}
    batches = array_batches(arrays, batch_size=5, seed=0)
    epochs = [
        np.concatenate([next(batches)["x"], next(batches)["x"]]) for _ in range(3)
    ]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), arrays["x"])
    assert (epochs[0] != epochs[1]).any()
    batch = next(batches)
    np.testing.assert_array_equal(batch["label"], 2 * batch["x"])


def test_array_batches_continue_where_they_stood():
    arrays = {"x": np.arange(7.0)}
    batches = array_batches(arrays, batch_size=3, seed=1)
    next(batches)
    state = batches.get_state()
    expected = [next(batches)["x"] for _ in range(4)]
    again = array_batches(arrays, batch_size=3, seed=1)
    again.set_state(state)
    np.testing.assert_array_equal([next(again)["x"] for _ in range(4)], expected)


@pytest.mark.parametrize(
    ("arrays", "seed", "message"),
    [
        ({}, 0, "at least 1"),
        ({"x": np.zeros(0)}, 0, "at least 1"),
        ({"x": np.zeros(3), "y": np.zeros(4)}, 0, "one length"),
        ({"x": np.zeros(3)}, -1, "negative"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays, seed, message):
    with pytest.raises(ValueError, match=message):
        array_batches(arrays, batch_size=2, seed=seed)
