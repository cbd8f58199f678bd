"""Prepare an image set once, as ArrayRecord that is later read without TensorFlow.

    python -m experiments.prepare_data digits
    python -m experiments.prepare_data mnist --data-dir /data/tfds

``digits`` (1,797 images, inside scikit-learn) needs neither network nor TensorFlow and
takes a second. Every other name is a set of tensorflow-datasets, is downloaded, and
needs the extra `prepare`. Expected for mnist: "train: 60000, test: 10000".
"""

import pathlib
from typing import Annotated

import tyro

from experiments.entry import entry_point
from flowjax.data import prepare_image_set


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
    builder = prepare_image_set(name, data_dir=data_dir, manual_dir=manual_dir)
    print(f"{name} is in {builder.data_dir}")
    print(", ".join(f"{k}: {v.num_examples}" for k, v in builder.info.splits.items()))


if __name__ == "__main__":
    tyro.cli(main)
