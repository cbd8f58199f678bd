"""Image sets of tensorflow-datasets, prepared once for reading without TensorFlow."""

import os
from pathlib import Path
from typing import Any

from flowjax.data.image_sets import find_builder, labelled_images
from flowjax.extras import require


def prepare_image_set(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    manual_dir: str | os.PathLike[str] | None = None,
) -> Any:
    """Download and write an image set as ArrayRecord, unless it is there.

    Args:
        name: ``"digits"``, which needs neither network nor TensorFlow, or a set of
            tensorflow-datasets with labelled images of one size.
        data_dir: root of the prepared sets; by default that of tensorflow-datasets
            ($TFDS_DATA_DIR or ~/tensorflow_datasets).
        manual_dir: files fetched by hand, under their original names, which are then
            not downloaded.

    Returns:
        The tfds builder of the prepared set: its ``data_dir`` and ``info``.

    Raises:
        ImportError: without the extra `data`, or, where there is something to prepare,
            the extra `prepare`.
        ValueError: if the name is unknown, or the set has no such images.
    """
    if name == "digits":
        from flowjax.data import digits

        digits.prepare(data_dir)
        return find_builder(digits.NAME, data_dir)
    try:
        return find_builder(name, data_dir)
    except FileNotFoundError:
        pass
    require("tensorflow", extra="prepare")
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    labelled_images(name, builder.info.features)  # before hours of downloading
    by_hand = None if manual_dir is None else Path(manual_dir)
    config = tfds.download.DownloadConfig(manual_dir=by_hand)
    if by_hand is not None:
        # MNIST and its relatives share their files' names, so that one's extracted
        # files would be taken for the other's.
        config.extract_dir = builder.data_dir_root / "downloads" / "extracted" / name
    builder.download_and_prepare(download_config=config)
    return find_builder(name, data_dir)
