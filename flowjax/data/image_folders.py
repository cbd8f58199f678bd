"""Images from a folder of files: any mode and size in, one array shape out.

Files are read with Pillow, which the extra `data` brings, as PNG, JPEG or WebP and as
nothing else. What can't be read is named and left out, unless that is to be an error.
"""

import dataclasses
import hashlib
import json
import math
import os
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from flowjax.data.image_sets import IN_MEMORY_BYTES, ImageSource, MemoryRecords
from flowjax.extras import require

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Files with other endings are not looked at."""

_FORMATS = ("PNG", "JPEG", "WEBP")
_GREY = ("1", "L", "LA", "I", "I;16", "I;16B")
_CHANNELS = {"grey": 1, "rgb": 3, "rgba": 4}
_THREADS = min(16, 2 * (os.cpu_count() or 1))

Mode = Literal["auto", "grey", "rgb", "rgba"]
Fit = Literal["crop", "stretch", "pad"]
Broken = Literal["skip", "refuse"]


class ReadingRule(NamedTuple):
    """How a file becomes an array.

    Attributes:
        size: height and width, or None to keep them.
        fit: ``"crop"`` scales the shorter side to ``size`` and cuts the middle out,
            ``"stretch"`` scales both sides, ``"pad"`` scales the longer side and fills
            up with the background.
        mode: ``"grey"``, ``"rgb"`` or ``"rgba"``.
        background: grey level 0..255 behind transparent pixels and padding.
    """

    size: int | None
    fit: Fit
    mode: Mode
    background: int

    def read(self, path: Path) -> UInt8[np.ndarray, "h w c"]:
        """Read one file.

        Raises:
            OSError: if it is damaged or of another format.
        """
        pil = require("PIL.Image", extra="data")
        try:
            with pil.open(path, formats=_FORMATS) as image:
                image.load()
                return self._array(image)
        except Exception as error:  # Pillow's decoders raise whatever they meet
            raise OSError(f"{path}: {error}") from error

    def _array(self, image: Any) -> UInt8[np.ndarray, "h w c"]:
        ops = require("PIL.ImageOps", extra="data")
        pil = require("PIL.Image", extra="data")
        image = _eight_bits(ops.exif_transpose(image))
        image = self._flatten(image).convert(
            {"grey": "L", "rgb": "RGB", "rgba": "RGBA"}[self.mode]
        )
        if self.size is not None:
            target, filtered = (self.size, self.size), pil.Resampling.LANCZOS
            if self.fit == "crop":
                image = ops.fit(image, target, filtered)
            elif self.fit == "pad":
                color = {"L": self.background, "RGBA": (self.background,) * 3 + (0,)}
                filling = color.get(image.mode, (self.background,) * 3)
                image = ops.pad(image, target, filtered, color=filling)
            else:
                image = image.resize(target, filtered)
        pixels = np.asarray(image, np.uint8)
        return pixels.reshape(*pixels.shape[:2], -1)

    def _flatten(self, image: Any) -> Any:
        """Put what is transparent over the background."""
        see_through = "A" in image.mode or "transparency" in image.info
        if not see_through:
            return image
        image = image.convert("RGBA")
        if self.mode == "rgba":
            return image
        pil = require("PIL.Image", extra="data")
        behind = pil.new("RGBA", image.size, (self.background,) * 3 + (255,))
        return pil.alpha_composite(behind, image)


def _eight_bits(image: Any) -> Any:
    """Return an image of 16 or more bits with its highest 8."""
    if not image.mode.startswith("I"):
        return image
    pil = require("PIL.Image", extra="data")
    levels = np.asarray(image).astype(np.int64).clip(0, 65535) // 257
    return pil.fromarray(levels.astype(np.uint8))


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
    headers = list(_in_threads(partial(_header, oriented=size is None), files))
    if mode == "auto":
        kinds = {header.mode for header in headers if header.mode}
        mode = "grey" if kinds <= set(_GREY) else "rgb"
    rule = ReadingRule(size, fit, mode, background)
    bad = {
        file: header.error for file, header in _pairs(files, headers) if header.error
    }
    files, labels, headers = _without(bad, files, labels, headers)
    shape = _shape(rule, files, headers)

    def source(records: Any) -> ImageSource:
        return ImageSource(records, shape, len(names) or None, class_names=tuple(names))

    if cache is not None:
        records, lost = _cached(Path(cache), root, files, labels, rule, shape)
        _report(root, bad | lost, len(records), broken)
        return source(records)
    if in_memory is None:
        in_memory = len(files) * math.prod(shape) <= IN_MEMORY_BYTES
    if not in_memory:
        _report(root, bad, len(files), broken)
        return source(_Files(files, labels, rule))
    arrays = list(_in_threads(_or_error(rule.read), files))
    bad |= {f: str(a) for f, a in _pairs(files, arrays) if isinstance(a, OSError)}
    files, labels, arrays = _without(bad, files, labels, arrays)
    _report(root, bad, len(files), broken)
    images = np.stack(arrays)
    images.flags.writeable = False
    return source(MemoryRecords(images, np.array(labels)))


class _Header(NamedTuple):
    """What the first bytes of a file say."""

    mode: str = ""
    size: tuple[int, int] = (0, 0)
    error: str = ""


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


def _header(path: Path, *, oriented: bool) -> _Header:
    pil = require("PIL.Image", extra="data")
    try:
        with pil.open(path, formats=_FORMATS) as image:
            # Turned by its orientation, a picture may change sides. To know that can
            # take the whole file.
            turned = oriented and image.getexif().get(0x0112, 1) >= 5
            size = image.size[::-1] if turned else image.size
            return _Header(image.mode, size)
    except Exception as error:  # as in `ReadingRule.read`
        return _Header(error=f"{path}: {error}")


def _shape(
    rule: ReadingRule, files: Sequence[Path], headers: Sequence[_Header]
) -> tuple[int, int, int]:
    channels = _CHANNELS[rule.mode]
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


@dataclasses.dataclass(frozen=True)
class _Cache(Sequence):
    """Decoded images in an ArrayRecord file: four bytes of label, then the pixels."""

    source: Any
    shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        return self._decode(self.source[index])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self._decode(record) for record in self.source.__getitems__(indices)]

    def _decode(self, record: bytes) -> dict[str, Any]:
        pixels = np.frombuffer(record, np.uint8, offset=4).reshape(self.shape)
        return {"image": pixels, "label": int(np.frombuffer(record, "<i4", 1)[0])}


def _cached(
    place: Path,
    root: Path,
    files: Sequence[Path],
    labels: Sequence[int],
    rule: ReadingRule,
    shape: tuple[int, int, int],
) -> tuple[_Cache, dict[Path, str]]:
    """Return the cached images, decoded now if need be, and what could not be read."""
    module = require("array_record.python.array_record_data_source", extra="data")
    stats = [(str(f.relative_to(root)), f.stat()) for f in files]
    said = [(name, s.st_size, s.st_mtime_ns) for name, s in stats]
    text = json.dumps([rule, shape, said, list(labels)])
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    target = place / f"images-{name}.array_record"
    lost: dict[Path, str] = {}
    if not target.is_file():
        lost = _write_cache(target, files, labels, rule)
    return _Cache(module.ArrayRecordDataSource(str(target)), shape), lost


def _write_cache(
    target: Path, files: Sequence[Path], labels: Sequence[int], rule: ReadingRule
) -> dict[Path, str]:
    module = require("array_record.python.array_record_module", extra="data")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
    lost = {}
    try:
        writer = module.ArrayRecordWriter(str(part), "group_size:1")
        read = _in_threads(_or_error(rule.read), files)
        for file, label, image in zip(files, labels, read, strict=True):
            if isinstance(image, OSError):
                lost[file] = str(image)
            else:
                writer.write(np.array([label], "<i4").tobytes() + image.tobytes())
        writer.close()
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return lost


def _or_error(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def attempt(path: Path) -> Any:
        try:
            return read(path)
        except OSError as error:
            return error

    return attempt


def _in_threads(
    function: Callable[[Path], Any], files: Sequence[Path]
) -> Iterator[Any]:
    """Map in order, a bounded number ahead: results are large."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(files), 64 * _THREADS):
            yield from pool.map(function, files[start : start + 64 * _THREADS])


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
