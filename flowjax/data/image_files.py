"""One image file after another: what it says of itself, and its pixels as one array.

Pillow, which the extra `data` brings, reads PNG, JPEG and WebP, and nothing else.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from flowjax.extras import require

_FORMATS = ("PNG", "JPEG", "WEBP")
GREY = ("1", "L", "LA", "I", "I;16", "I;16B")
CHANNELS = {"grey": 1, "rgb": 3, "rgba": 4}
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


class Header(NamedTuple):
    """What the first bytes of a file say."""

    mode: str = ""
    size: tuple[int, int] = (0, 0)
    error: str = ""


def read_header(path: Path, *, oriented: bool) -> Header:
    """Read what a file says of itself, or why it can't be read.

    Args:
        path: the file.
        oriented: return the size after the picture has been turned upright.
    """
    pil = require("PIL.Image", extra="data")
    try:
        with pil.open(path, formats=_FORMATS) as image:
            # Turned by its orientation, a picture may change sides. To know that can
            # take the whole file.
            turned = oriented and image.getexif().get(0x0112, 1) >= 5
            size = image.size[::-1] if turned else image.size
            return Header(image.mode, size)
    except Exception as error:  # as in `ReadingRule.read`
        return Header(error=f"{path}: {error}")


def or_error(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Return ``read``, which returns the OSError that it would raise."""

    def attempt(path: Path) -> Any:
        try:
            return read(path)
        except OSError as error:
            return error

    return attempt


def in_threads(function: Callable[[Path], Any], files: Sequence[Path]) -> Iterator[Any]:
    """Map in order, a bounded number ahead: results are large."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(files), 64 * _THREADS):
            yield from pool.map(function, files[start : start + 64 * _THREADS])
