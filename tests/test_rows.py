"""Rows by number: what batches are made of."""

import numpy as np
import pytest

from flowjax import data


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
