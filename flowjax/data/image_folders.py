"""Images from a folder of files: any mode and size in, one array shape out.

What can't be read is named and left out, unless that is to be an error.
"""

import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flowjax.data.image_cache import cached_records
from flowjax.data.image_files import (
    CHANNELS,
    GREY,
    Broken,
    Fit,
    Header,
    Mode,
    ReadingRule,
    in_threads,
    or_error,
    read_header,
)
from flowjax.data.image_sets import IN_MEMORY_BYTES, ImageSource, MemoryRecords

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Files with other endings are not looked at."""


def load_image_folder(
    folder: str | os.PathLike[str],
    *,
    size: int | None = 32,
    fit: Fit = "crop",
    mode: Mode = "auto",
    background: int = 255,
    broken: Broken = "skip",
    cache: str | os.PathLike[str] | None = None,
    in_memory: bool | None = None,
) -> ImageSource:
    """Open a folder of images, with one subfolder per class or without any.

    The classes are the subfolders in alphabetical order; files may lie deeper inside.

    Args:
        folder: the folder; hidden files are left out.
        size: height and width of what is returned, in pixels; None: all files have one
            size and keep it.
        fit: see `ReadingRule`.
        mode: channels of what is returned; ``"auto"``: grey if every file is, else rgb.
        background: see `ReadingRule`.
        broken: what to do with files that can't be read: name them in a warning and
            leave them out, or refuse the folder.
        cache: a folder where the decoded images are kept as ArrayRecord, so that they
            are decoded once; a changed file or rule makes a new one.
        in_memory: whether to keep the decoded images in memory; by default exactly when
            they take at most `IN_MEMORY_BYTES` or there is a cache to be read instead.

    Raises:
        FileNotFoundError: if there is no such folder, or no image in it.
        ImportError: without the extra `data`.
        ValueError: if images lie both beside and in subfolders, the sizes differ with
            ``size=None``, an option is out of range, or files are broken and
            ``broken="refuse"``.
    """
    _check(size, background)
    root = Path(folder).expanduser()
    files, labels, names = _scan(root)
    headers = list(in_threads(partial(read_header, oriented=size is None), files))
    if mode == "auto":
        kinds = {header.mode for header in headers if header.mode}
        mode = "grey" if kinds <= set(GREY) else "rgb"
    rule = ReadingRule(size, fit, mode, background)
    bad = {
        file: header.error for file, header in _pairs(files, headers) if header.error
    }
    files, labels, headers = _without(bad, files, labels, headers)
    shape = _shape(rule, files, headers)

    def source(records: Any) -> ImageSource:
        return ImageSource(records, shape, len(names) or None, class_names=tuple(names))

    if cache is not None:
        records, lost = cached_records(Path(cache), root, files, labels, rule, shape)
        _report(root, bad | lost, len(records), broken)
        return source(records)
    if in_memory is None:
        in_memory = len(files) * math.prod(shape) <= IN_MEMORY_BYTES
    if not in_memory:
        _report(root, bad, len(files), broken)
        return source(_Files(files, labels, rule))
    arrays = list(in_threads(or_error(rule.read), files))
    bad |= {f: str(a) for f, a in _pairs(files, arrays) if isinstance(a, OSError)}
    files, labels, arrays = _without(bad, files, labels, arrays)
    _report(root, bad, len(files), broken)
    images = np.stack(arrays)
    images.flags.writeable = False
    return source(MemoryRecords(images, np.array(labels)))


def _check(size: int | None, background: int) -> None:
    if size is not None and size < 1:
        raise ValueError(f"`size` must be at least 1 or None; got {size}")
    if not 0 <= background <= 255:
        raise ValueError(f"`background` must lie in 0..255; got {background}")


def _scan(root: Path) -> tuple[list[Path], list[int], list[str]]:
    """Return the files, their labels and the names of the classes."""
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    beside = sorted(file for file in root.iterdir() if _is_image(file))
    inside = {
        entry.name: files
        for entry in sorted(root.iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
        if (files := sorted(file for file in entry.rglob("*") if _is_image(file)))
    }
    if beside and inside:
        raise ValueError(
            f"{root} holds images both in itself ({beside[0].name}) and in subfolders "
            f"({', '.join(list(inside)[:3])}); subfolders are classes, or there are "
            "none"
        )
    if not beside and not inside:
        raise FileNotFoundError(
            f"there is no image in {root}: no file that ends in {', '.join(SUFFIXES)}"
        )
    if beside:
        return beside, [0] * len(beside), []
    files = [file for group in inside.values() for file in group]
    labels = [label for label, group in enumerate(inside.values()) for _ in group]
    return files, labels, list(inside)


def _is_image(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return path.suffix.lower() in SUFFIXES and not hidden and path.is_file()


def _shape(
    rule: ReadingRule, files: Sequence[Path], headers: Sequence[Header]
) -> tuple[int, int, int]:
    channels = CHANNELS[rule.mode]
    if rule.size is not None:
        return rule.size, rule.size, channels
    sizes = {header.size: file for file, header in _pairs(files, headers)}
    if len(sizes) > 1:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise ValueError(
            f"images of one size are needed with `size`=None: {first} is "
            f"{one[0]} x {one[1]}, {second} is {other[0]} x {other[1]}"
        )
    width, height = next(iter(sizes), (1, 1))
    return height, width, channels


class _Files(Sequence):
    """Records that are decoded when they are asked for.

    A file that turns out broken then is named in a warning, and the next readable one
    takes its place: which one, depends on the files alone.
    """

    def __init__(self, files: Sequence[Path], labels: Sequence[int], rule: ReadingRule):
        self._files, self._labels, self._rule = files, labels, rule

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        for place in range(index, index + len(self._files)):
            place %= len(self._files)
            try:
                image = self._rule.read(self._files[place])
            except OSError as error:
                warnings.warn(
                    f"can't be read, the next image is taken for it: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
                continue
            return {"image": image, "label": self._labels[place]}
        raise OSError("none of the images can be read")


def _pairs(files: Iterable[Path], values: Iterable[Any]) -> Iterator[tuple[Path, Any]]:
    return zip(files, values, strict=True)


def _without(bad: dict[Path, str], files: list[Path], *rest: Any) -> tuple[Any, ...]:
    """Return lists without the places of the bad files."""
    kept = [i for i, file in enumerate(files) if file not in bad]
    return tuple([column[i] for i in kept] for column in (files, *rest))


def _report(root: Path, bad: dict[Path, str], left: int, broken: Broken) -> None:
    if not bad:
        return
    named = "; ".join(list(bad.values())[:5]) + ("; …" if len(bad) > 5 else "")
    text = f"{len(bad)} of {len(bad) + left} images in {root} can't be read: {named}"
    if broken == "refuse" or not left:
        raise ValueError(text)
    warnings.warn(f"{text}. They are left out", RuntimeWarning, stacklevel=3)
