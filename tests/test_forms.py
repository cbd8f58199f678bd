"""Forms: what an example is to its user, drawn, written, measured and stored."""

import json

import numpy as np
import pytest
from PIL import Image

from experiments.data import DATA, Conditions, Example
from experiments.data.entry_forms import TableForm, VectorForm
from experiments.data.example_record import FORMS, decode_example, encode_example
from experiments.data.forms import ImageForm, PointForm
from flowjax.data import tables
from flowjax.data.tables import Column

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
