"""Image sets with random access, read from prepared ArrayRecord without TensorFlow."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from flowjax.extras import require

IN_MEMORY_BYTES = 256 * 2**20
"""Sets whose decoded images take at most this much are held in memory by default."""

_CHUNK = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSource:
    """An image set with random access.

    Attributes:
        records: one ``{"image": uint8 [h, w, c], "label": int}`` per index; other keys
            are ignored.
        image_shape: (height, width, channels).
        num_classes: labels lie in 0..num_classes - 1; None: there are none.
        maximum: the pixel value of full intensity, which `scale` maps to 1.
        class_names: what the classes are called, where that is known.
    """

    records: Sequence[Mapping[str, Any]]
    image_shape: tuple[int, int, int]
    num_classes: int | None
    maximum: int = 255
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one raw record ``{"image": uint8 [h, w, c], "label": int}``."""
        record = self.records[index]
        known = ("image",) if self.num_classes is None else ("image", "label")
        return {name: record[name] for name in known}

    def gather(
        self, indices: Sequence[int]
    ) -> tuple[UInt8[np.ndarray, "n h w c"], Int32[np.ndarray, "n"] | None]:
        """Return the raw images [n, h, w, c] and labels [n], if any, at ``indices``.

        Raises:
            ValueError: if a label is out of range (unlabelled splits have -1), or the
                images are not uint8.
        """
        # tensorflow-datasets reads many records at half the cost of one after another.
        read_many = getattr(self.records, "__getitems__", None)
        if read_many is None:
            rows = [self.records[index] for index in indices]
        else:
            rows = read_many(indices)
        images = np.stack([row["image"] for row in rows])
        if images.dtype != np.uint8:
            raise ValueError(f"images must be uint8; got {images.dtype}")
        if self.num_classes is None:
            return images, None
        labels = np.array([row["label"] for row in rows], np.int32)
        wrong = np.flatnonzero((labels < 0) | (labels >= self.num_classes))
        if wrong.size:
            raise ValueError(
                f"labels must lie in 0..{self.num_classes - 1}; record "
                f"{indices[wrong[0]]} has {labels[wrong[0]]}"
                + (", as in a split without labels" if labels[wrong[0]] < 0 else "")
            )
        return images, labels

    @property
    def in_memory(self) -> bool:
        """Whether the images are decoded, so that reading them is a copy."""
        return isinstance(self.records, MemoryRecords)

    def select(self, rows: np.ndarray) -> "ImageSource":
        """Return the records of these numbers, numbered anew."""
        records: Sequence[Mapping[str, Any]]
        if isinstance(self.records, MemoryRecords):
            records = self.records.select(rows)
        else:
            records = _Chosen(self.records, rows)
        return dataclasses.replace(self, records=records)

    def scale(
        self, images: UInt8[np.ndarray, "n h w c"]
    ) -> Float32[np.ndarray, "n h w c"]:
        """Map pixel values 0..maximum to [-1, 1]; both ends are exact."""
        return images.astype(np.float32) / np.float32(self.maximum / 2) - 1


def load_source(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    in_memory: bool | None = None,
) -> ImageSource:
    """Open a prepared image set of tensorflow-datasets, or the digits of scikit-learn.

    Args:
        name: ``"digits"``, which is prepared on first use, or any prepared set:
            ``"mnist"``, ``"cifar10"``, ``"imagenet_resized/64x64"``, …
        split: a split in the notation of tensorflow-datasets, ``"train"`` or
            ``"train[:1000]"``.
        data_dir: root of the prepared sets; by default that of tensorflow-datasets
            ($TFDS_DATA_DIR or ~/tensorflow_datasets).
        in_memory: whether to decode everything once and keep it (5 to 10 seconds
            for MNIST); by default exactly when that needs at most `IN_MEMORY_BYTES`.

    Raises:
        FileNotFoundError: if the set is known but not prepared in ``data_dir``.
        ImportError: without the extra `data`.
        ValueError: if the name or split is unknown, or the set has no labelled uint8
            images of one size, or was prepared in a format without random access.
    """
    name, maximum = _resolve(name, data_dir)
    builder = find_builder(name, data_dir)
    image_shape, num_classes = labelled_images(name, builder.info.features)
    records = builder.as_data_source(split)
    source = ImageSource(records, image_shape, num_classes, maximum)
    if in_memory is None:
        in_memory = len(source) * math.prod(image_shape) <= IN_MEMORY_BYTES
    return _decode(source) if in_memory else source


def load_arrays(
    name: str, split: str, *, data_dir: str | os.PathLike[str] | None = None
) -> tuple[Float32[np.ndarray, "n h w c"], Int32[np.ndarray, "n"]]:
    """Return a whole split: images in [-1, 1] [n, h, w, c] and labels [n].

    For evaluation sets; the arguments and errors are those of `load_source`.
    """
    source = load_source(name, split, data_dir=data_dir, in_memory=True)
    images, labels = source.gather(range(len(source)))
    assert labels is not None  # `load_source` refuses a set without
    return source.scale(images), labels


def labelled_images(name: str, features: Any) -> tuple[tuple[int, int, int], int]:
    """Return (height, width, channels) and the number of classes of a tfds set.

    Raises:
        ValueError: if the features lack a class label or uint8 images of one size.
    """
    by_name = dict(features.items()) if hasattr(features, "items") else {}
    image = by_name.get("image")
    shape, dtype = getattr(image, "shape", None), getattr(image, "np_dtype", None)
    num_classes = getattr(by_name.get("label"), "num_classes", None)
    match shape:
        case (int(height), int(width), int(channels)):
            if dtype == np.uint8 and num_classes is not None:
                return (height, width, channels), num_classes
    raise ValueError(
        f"`{name}` must have uint8 images of one size under `image` and a class under "
        f"`label`; got the features {features}"
    )


class MemoryRecords(Sequence):
    """Decoded records; a row is a view of the arrays, not a copy."""

    def __init__(self, images: np.ndarray, labels: np.ndarray | None):
        """Take images [n, h, w, c] and labels [n], if any."""
        self._images = images
        self._labels = np.zeros(len(images), np.int32) if labels is None else labels

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self._images)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """Return one record."""
        return {"image": self._images[index], "label": self._labels[index]}

    def select(self, rows: np.ndarray) -> "MemoryRecords":
        """Return the records of these numbers."""
        return MemoryRecords(self._images[rows], self._labels[rows])


class _Chosen(Sequence):
    """Some records of others, numbered anew."""

    def __init__(self, records: Sequence[Mapping[str, Any]], rows: np.ndarray):
        self._records, self._rows = records, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Mapping[str, Any]:
        return self._records[int(self._rows[index])]

    def __getitems__(self, indices: Sequence[int]) -> list[Mapping[str, Any]]:
        chosen = self._rows[np.asarray(indices, int)].tolist()
        read_many = getattr(self._records, "__getitems__", None)
        return (
            [self._records[i] for i in chosen] if not read_many else read_many(chosen)
        )


def _decode(source: ImageSource) -> ImageSource:
    """Return ``source`` with its records decoded into two arrays."""
    images = np.empty((len(source), *source.image_shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    # In chunks, so that the encoded and the decoded set never coexist as a whole.
    for start in range(0, len(source), _CHUNK):
        rows = range(start, min(start + _CHUNK, len(source)))
        images[start : rows.stop], chunk = source.gather(rows)
        if chunk is not None:
            labels[start : rows.stop] = chunk
    images.flags.writeable = labels.flags.writeable = False
    return dataclasses.replace(source, records=MemoryRecords(images, labels))


def _resolve(name: str, data_dir: Any) -> tuple[str, int]:
    """Return the set's name for tensorflow-datasets and its largest pixel value."""
    # tensorflow-datasets imports it late and says less when it is missing.
    require("array_record", extra="data")
    from flowjax.data import digits

    if name not in ("digits", digits.NAME):
        return name, 255
    digits.prepare(data_dir)
    return digits.NAME, digits.MAXIMUM


def find_builder(name: str, data_dir: str | os.PathLike[str] | None) -> Any:
    """Return the tfds builder of a prepared set, found by its files alone.

    Raises:
        FileNotFoundError: if the set is known but not prepared in ``data_dir``.
        ValueError: if the name is unknown, or no file format has random access.
    """
    tfds = require("tensorflow_datasets", extra="data")
    try:
        builder = tfds.core.read_only_builder.builder_from_files(
            name, data_dir=data_dir
        )
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        if name.split("/")[0].split(":")[0] not in known:
            raise ValueError(
                f"`name` must be 'digits' or an image set of tensorflow-datasets; "
                f"got {name!r}"
            ) from error
        raise FileNotFoundError(
            f"`{name}` is not prepared in {data_dir or 'the default data directory'}; "
            f"call once: {_command(name, data_dir)}"
        ) from error
    formats = builder.info.available_file_formats()
    if formats.isdisjoint(tfds.core.FileFormat.with_random_access()):
        raise ValueError(
            f"`{name}` in {builder.data_dir} has no random access, being stored as "
            f"{', '.join(form.value for form in formats)}; prepare it as array_record "
            f"in another place: {_command(name, 'DIR')}"
        )
    return builder


def _command(name: str, data_dir: str | os.PathLike[str] | None) -> str:
    place = "" if data_dir is None else f", data_dir={os.fspath(data_dir)!r}"
    return f"flowjax.data.prepare_image_set({name!r}{place})"
