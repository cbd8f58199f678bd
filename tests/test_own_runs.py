"""Runs on data of one's own, from the command line to samples without the data."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import configs, evaluate, likelihood, sample
from experiments.data import register
from experiments.data.records import RecordSet
from experiments.engine import run
from experiments.engine.experiment import smoke
from experiments.engine.loop import train
from experiments.language.sentence import use
from flowjax.data import tables
from tests.test_experiments import call

RNG = np.random.default_rng(0)


def images(folder):
    """Two classes of images of several sizes and modes."""
    for i in range(150):
        place = folder / "set" / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        size = tuple(int(n) for n in RNG.integers(9, 30, 2))
        image = Image.fromarray(RNG.integers(0, 256, (*size, 3), dtype=np.uint8))
        image.convert(["RGB", "L", "P", "RGBA"][i % 4]).save(place / f"{i}.png")
    return ["--data", "images", "--data.folder", folder / "set", "--data.size", "8"]


def vectors(folder):
    """Vectors with a label and a vector to condition on."""
    x = 50 + 10 * RNG.normal(size=(300, 3))
    label = RNG.integers(0, 3, 300)
    np.savez(folder / "x.npz", x=x, label=label, speed=x[:, 0], place=x[:, 1:])
    flags = ["--data", "arrays", "--data.file", folder / "x.npz"]
    return [*flags, "--data.label", "label", "--data.vector", "speed", "place"]


def masked_images(folder):
    """Images with a mask to condition on, under guidance that the network is told."""
    masks = RNG.integers(0, 2, (100, 8, 8, 1)).astype(np.float32)
    np.savez(folder / "x.npz", x=(255 * masks).astype(np.uint8), mask=masks)
    flags = ["--data", "arrays", "--data.file", folder / "x.npz"]
    return [*flags, "--data.x", "x", "--data.array", "mask", "--network.guidance"]


def volumes(folder):
    """Volumes with four axes."""
    np.save(folder / "x.npy", RNG.normal(size=(100, 4, 4, 4, 2)))
    return ["--data", "arrays", "--data.file", folder / "x.npy"]


def table(folder):
    """A table with a column of categories and missing values."""
    rows = [f"{i % 7},{'' if i % 5 == 0 else i / 2},{'xyz'[i % 3]}" for i in range(200)]
    (folder / "t.csv").write_text("\n".join(["whole,number,city", *rows]) + "\n")
    flags = ["--data", "table", "--data.file", folder / "t.csv"]
    return [*flags, "--data.missing", "mask"]


# Each: an experiment and what makes the data and the flags. The last needs the
# least time and stands for all in the default suite.
slow = pytest.mark.slow
CASES = [
    pytest.param("digits_mean_flow", images, [], marks=slow),
    pytest.param("density_mean_flow", vectors, ["--label", "1"], marks=slow),
    pytest.param("digits_mean_flow", masked_images, ["--guidance", "2"], marks=slow),
    pytest.param("digits_mean_flow", volumes, [], marks=slow),
    pytest.param("density_mean_flow", table, []),
]


@pytest.mark.parametrize(("name", "make", "options"), CASES)
def test_own_data_are_trained_on_and_sampled_without(name, make, options, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    flags = [*make(folder), "--run", tmp_path / "r", "--smoke"]
    code, output = call("train", name, *flags, cwd=tmp_path)
    assert code == 0, output
    assert "| 1-step | 1 |" in output
    assert (tmp_path / "r" / "samples.png").is_file()
    shutil.rmtree(folder)  # a run folder needs no data to be sampled
    out = tmp_path / "drawn" / "s"
    flags = ["--count", "20", "--out", out, *options]
    code, output = call("sample", tmp_path / "r", *flags, cwd=tmp_path)
    assert code == 0, output
    example = run.load(tmp_path / "r").example
    if make is table:
        drawn = tables.read_table(out.with_suffix(".csv"))
        assert list(drawn) == ["whole", "number", "city"]
        assert set(drawn["city"]) <= set("xyz")
        assert all(isinstance(value, int) for value in drawn["whole"])
        return
    with np.load(out.with_suffix(".npz")) as archive:
        drawn = dict(archive)
    assert drawn["x"].shape == (20, *example.event)
    assert drawn.keys() == {"x", *example.conditions.kinds}
    if make is vectors:
        assert set(drawn["label"]) == {1}
        assert 30 < drawn["vector"].mean() < 70  # in the units of the file
    if make is images:
        assert drawn["x"].dtype == np.uint8


REFUSED = [
    (["--vector", "1", "2"], "trained without a vector; got"),
    (["--label", "7"], r"labels must lie in 0\.\.1; got 7"),
    (["--each"], "single files are written of images"),
]


def test_an_object_is_trained_on_from_a_program(tmp_path):
    records = [{"x": RNG.normal(size=2), "label": i % 2} for i in range(200)]
    register("mine", records, num_classes=2)
    experiment = smoke(configs.get("density_flow_matching"))
    experiment = experiment.vary(data=use(RecordSet, name="mine"))
    with jax.numpy_dtype_promotion("standard"):
        state = train(experiment, tmp_path / "r", progress=False)
        assert int(state.step) == 8
        _check_samples(tmp_path)


def _check_samples(tmp_path):
    out = tmp_path / "s"
    sample.main([str(tmp_path / "r"), "--count", "4", "--out", str(out)])
    with np.load(out.with_suffix(".npz")) as archive:
        assert archive["label"].tolist() == [0, 1, 0, 1]
    with pytest.raises(ValueError, match="bits per dimension need discrete data"):
        likelihood.estimate(run.restore(tmp_path / "r"), likelihood.Options())
    for flags, message in REFUSED:
        with pytest.raises(SystemExit, match=message):
            sample.main([str(tmp_path / "r"), "--count", "2", *flags])


def test_a_checkpoint_and_the_parameters_are_chosen(tmp_path):
    experiment = smoke(configs.get("density_flow_matching"))
    experiment = experiment.vary(evaluation={"steps": (1,), "samples": 30})
    folder = tmp_path / "r"
    with jax.numpy_dtype_promotion("standard"):
        train(experiment, folder, progress=False)
        drawn = {}
        for flags in ([], ["--step", "4"], ["--no-averaged"], ["--step", "8"]):
            sample.main([str(folder), "--count", "5", "--grid.steps", "2", *flags])
            (newest,) = set(folder.glob("samples_*.npz")) - drawn.keys()
            with np.load(newest) as archive:
                drawn[newest] = archive["x"]
        last, earlier, raw, chosen = drawn.values()
        np.testing.assert_array_equal(chosen, last)
        assert np.abs(earlier - last).max() > 1e-5
        assert np.abs(raw - last).max() > 1e-5
        with pytest.raises(SystemExit, match="step 5; it holds 4, 8"):
            sample.main([str(folder), "--step", "5"])
        evaluate.main([str(folder), "--evaluation.steps", "3", "--step", "4"])
    figures = json.loads((folder / "evaluation_step_4.json").read_text())
    assert (figures["step"], figures["samples"]) == (4, 30)
    assert list(figures["figures"]) == ["real", "3-step", "ODE"]
    assert run.load(folder).experiment == experiment  # only asked otherwise once
