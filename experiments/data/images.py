"""Image sets: digits, sets of tensorflow-datasets, folders of image files."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Unpack

import numpy as np
from jaxtyping import Array

from experiments.data.base import BatchOptions, Example, Rows
from experiments.data.conditions import Conditions
from experiments.data.forms import ImageForm
from flowjax.data import (
    BatchIterator,
    ImageSource,
    RowSource,
    held_out_rows,
    image_batches,
    load_image_folder,
    load_source,
)
from flowjax.typing import Condition, PRNGKey

_THREADS = 8
"""Batches that are decoded ahead of the step where images come from a disk."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Scaled(RowSource):
    """The images of a source in [-1, 1], with their labels if there are any."""

    source: ImageSource

    def __len__(self) -> int:
        return len(self.source)

    def gather(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        images, labels = self.source.gather(rows)
        x = self.source.scale(images)
        return {"x": x} if labels is None else {"x": x, "label": labels}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSet(Rows):
    """A set of images of one size.

    Attributes:
        flip: mirror images left to right at random.
    """

    flip: bool = False

    def source(self, *, held_out: bool) -> ImageSource:
        """Open the training or the held-out images; errors as of `example`."""
        raise NotImplementedError

    def example(self) -> Example:
        """Return the shape and the number of classes of the set."""
        source = self.source(held_out=False)
        conditions = Conditions(source.num_classes, source.class_names)
        return Example(
            source.image_shape, conditions, ImageForm(maximum=source.maximum)
        )

    def rows(self, *, held_out: bool) -> RowSource:
        """Open the training or the held-out images."""
        return _Scaled(self.source(held_out=held_out))

    def batches(self, **options: Unpack[BatchOptions]) -> BatchIterator:
        """Open the training images."""
        source = self.source(held_out=False)
        ahead = 0 if source.in_memory else _THREADS
        return image_batches(source, flip=self.flip, num_threads=ahead, **options)

    def read(self, key: PRNGKey, batch: Any) -> tuple[Array, Condition]:
        """Return the images and labels of a batch."""
        return batch["image"], batch.get("label")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tfds(ImageSet):
    """An image set of tensorflow-datasets, prepared by experiments.prepare_data.

    Attributes:
        name: mnist, cifar10, imagenet_resized/64x64, or another prepared set with
            labelled images of one size.
        data_dir: root of the prepared sets; None: that of tensorflow-datasets.
        train_split: records to train on.
        test_split: records held out for the evaluation.
    """

    name: str
    data_dir: str | None = None
    train_split: str = "train"
    test_split: str = "test"

    may_differ: ClassVar = frozenset({"data_dir", "test_split"})

    def source(self, *, held_out: bool) -> ImageSource:
        """Open one of the splits."""
        split = self.test_split if held_out else self.train_split
        return _load(self.name, split, self.data_dir)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits(Tfds):
    """The 8 x 8 handwritten digits inside scikit-learn, prepared on first use.

    Attributes:
        name: not an option: the digits.
    """

    name: str = dataclasses.field(default="digits", init=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(ImageSet):
    """A folder of PNG, JPEG or WebP files, with a subfolder per class or without.

    Attributes:
        folder: the folder.
        size: height and width that all images are brought to, in pixels; None: all
            have one size and keep it.
        fit: crop scales the shorter side and cuts the middle out, stretch scales both
            sides, pad scales the longer side and fills up.
        mode: channels to train on; auto: grey if every image is, else rgb.
        background: grey level 0..255 behind transparent pixels and padding.
        broken: leave files that can't be read out, or refuse the folder.
        cache: a folder to keep the decoded images in, as ArrayRecord; None: images that
            do not fit into memory are decoded anew each time.
        test_folder: a folder of held-out images with the same classes; None: a share of
            the images is held out.
        test_share: the share, if there is no such folder.
    """

    folder: str
    size: int | None = 32
    fit: Literal["crop", "stretch", "pad"] = "crop"
    mode: Literal["auto", "grey", "rgb", "rgba"] = "auto"
    background: int = 255
    broken: Literal["skip", "refuse"] = "skip"
    cache: str | None = None
    test_folder: str | None = None
    test_share: float = 0.1

    may_differ: ClassVar = frozenset({"folder", "cache", "test_folder"})

    def source(self, *, held_out: bool) -> ImageSource:
        """Open the folder, or the part of it that is asked for.

        Raises:
            ValueError: also if the held-out images have another shape or other classes,
                or a share leaves no image on one side.
        """
        whole = _open_folder(self, self.folder)
        if self.test_folder is not None:
            other = _open_folder(self, self.test_folder)
            one, two = (
                (s.image_shape, s.class_names or s.num_classes) for s in (whole, other)
            )
            if one != two:
                raise ValueError(
                    f"{self.test_folder} must hold images like {self.folder}, of shape "
                    f"and classes {one}; got {two}"
                )
            return other if held_out else whole
        return whole.select(split_rows(len(whole), self.test_share, held_out=held_out))


def split_rows(size: int, share: float, *, held_out: bool) -> np.ndarray:
    """Return the numbers of the training or the held-out rows.

    Raises:
        ValueError: if there are none.
    """
    if not 0 < share < 1:
        raise ValueError(
            f"--data.test-share must lie between 0 and 1 where no held-out data are "
            f"given; got {share}"
        )
    aside = held_out_rows(size, share=share)
    rows = np.flatnonzero(aside == held_out)
    if not rows.size:
        raise ValueError(
            f"{size} examples with data.test_share={share:g} leave none "
            f"{'held out' if held_out else 'to train on'}"
        )
    return rows


# Opening is asked for in several places; the decoded images are one array.
@functools.lru_cache(maxsize=4)
def _load(name: str, split: str, data_dir: str | None) -> ImageSource:
    return load_source(name, split, data_dir=data_dir)


@functools.lru_cache(maxsize=4)
def _open_folder(options: Images, folder: str) -> ImageSource:
    return load_image_folder(
        folder,
        size=options.size,
        fit=options.fit,
        mode=options.mode,
        background=options.background,
        broken=options.broken,
        cache=options.cache,
    )
