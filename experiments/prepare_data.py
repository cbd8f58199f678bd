"""Prepare an image set once, as ArrayRecord that is later read without TensorFlow.

    python -m experiments.prepare_data digits
    python -m experiments.prepare_data mnist --data-dir /data/tfds

``digits`` (1,797 images, inside scikit-learn) needs neither network nor TensorFlow and
takes a second. Every other name is a set of tensorflow-datasets, is downloaded, and
needs the extra `prepare`. Expected for mnist: "train: 60000, test: 10000".
"""

import importlib.util
import pathlib
from typing import Annotated

import tyro

from experiments.entry import entry_point
from flowjax.data.image_sets import find_builder, labelled_images


@entry_point
def main(
    name: Annotated[str, tyro.conf.Positional],
    data_dir: pathlib.Path | None = None,
    manual_dir: pathlib.Path | None = None,
) -> None:
    """Prepare one image set and print where it lies and the sizes of its splits.

    Args:
        name: digits, or a set of tensorflow-datasets: mnist, cifar10, ….
        data_dir: root of the prepared sets; by default $TFDS_DATA_DIR or
            ~/tensorflow_datasets.
        manual_dir: files fetched by hand, under their original names, which are then
            not downloaded.
    """
    if name == "digits":
        from flowjax.data import digits

        digits.prepare(data_dir)
        name = digits.NAME
    try:
        builder = find_builder(name, data_dir)
    except FileNotFoundError:
        _prepare(name, data_dir, manual_dir)
        builder = find_builder(name, data_dir)
    print(f"{name} is in {builder.data_dir}")
    print(", ".join(f"{k}: {v.num_examples}" for k, v in builder.info.splits.items()))


def _prepare(
    name: str, data_dir: pathlib.Path | None, manual_dir: pathlib.Path | None
) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise ImportError(
            f"preparing {name} needs TensorFlow, the extra `prepare`: "
            "pip install 'flowjax-matching[prepare]' (reading it afterwards does not)."
        )
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    labelled_images(name, builder.info.features)  # before hours of downloading
    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    if manual_dir is not None:
        # MNIST and its relatives share their files' names, so that one's extracted
        # files would be taken for the other's.
        config.extract_dir = builder.data_dir_root / "downloads" / "extracted" / name
    builder.download_and_prepare(download_config=config)


if __name__ == "__main__":
    tyro.cli(main)
