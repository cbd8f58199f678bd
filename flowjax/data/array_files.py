"""Arrays from .npz and .npy files, mapped instead of read where they are large."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from flowjax.data.image_sets import IN_MEMORY_BYTES


def open_arrays(file: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Open the arrays of a file by name, or those of a folder of .npy files.

    Arrays of more than `IN_MEMORY_BYTES` are mapped into memory, of which only what is
    used is read: from .npy, and from .npz as `numpy.savez` writes it. A compressed .npz
    has to be read. Pickled objects are refused.

    Args:
        file: an .npz; an .npy, whose only array is called ``"x"``; or a folder, whose
            .npy files give their names.

    Raises:
        FileNotFoundError: if there is no such file, or no array in it.
        ValueError: if it is damaged, of another format, or holds Python objects.
    """
    path = Path(file).expanduser()
    if path.is_dir():
        files = {entry.stem: entry for entry in sorted(path.glob("*.npy"))}
        if not files:
            raise FileNotFoundError(f"there is no .npy file in the folder {path}")
        return {name: _open_npy(entry) for name, entry in files.items()}
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix == ".npy":
        return {"x": _open_npy(path)}
    if path.suffix == ".npz":
        return _open_npz(path)
    raise ValueError(f"{path} must end in .npz or .npy, or be a folder of .npy files")


def _open_npy(path: Path) -> np.ndarray:
    large = path.stat().st_size > IN_MEMORY_BYTES
    try:
        return np.load(path, mmap_mode="r" if large else None, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error


def _open_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [e for e in archive.infolist() if e.filename.endswith(".npy")]
        arrays: dict[str, np.ndarray] = {}
        with np.load(path, allow_pickle=False) as loaded:
            for entry in entries:
                name = entry.filename.removesuffix(".npy")
                stored = entry.compress_type == zipfile.ZIP_STORED
                if stored and entry.file_size > IN_MEMORY_BYTES:
                    arrays[name] = _map(path, entry)
                else:
                    arrays[name] = loaded[name]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error
    if not arrays:
        raise FileNotFoundError(f"there is no array in {path}")
    return arrays


def _map(path: Path, entry: zipfile.ZipInfo) -> np.ndarray:
    """Map an array that lies uncompressed inside an archive."""
    with path.open("rb") as file:
        # The length of a local header is only in itself: 30 bytes, then two names.
        file.seek(entry.header_offset + 26)
        lengths = np.frombuffer(file.read(4), "<u2")
        file.seek(entry.header_offset + 30 + int(lengths.sum()))
        version = np.lib.format.read_magic(file)
        read: Any = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise ValueError(f"{entry.filename} has the .npy version {version}")
        shape, fortran, dtype = read(file)
        if dtype.hasobject:
            raise ValueError(f"{entry.filename} holds Python objects")
        start = file.tell()
    order = "F" if fortran else "C"
    return np.memmap(path, dtype, "r", offset=start, shape=shape, order=order)
