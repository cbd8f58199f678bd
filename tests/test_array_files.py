"""Arrays and tables in files: read, mapped, and brought back."""

import numpy as np
import pytest

from flowjax import data
from flowjax.data import array_files, tables
from flowjax.data.tables import Column


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
