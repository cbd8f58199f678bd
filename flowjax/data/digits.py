"""The 8 x 8 handwritten digits that scikit-learn ships, as a tensorflow-datasets set.

A real image set that needs no network and no TensorFlow: 1,797 grey images with values
0..16, kept exactly. The split is fixed: sorted by class (in the original order inside a
class), the images at which ``floor(297 i / 1797)`` steps are the test set. That makes
297 test images, evenly spread over classes and over the original order, and leaves
1,500 for training. The same writers appear in both.

Importing this module needs the extra `data`.

References:
    Alpaydin, Kaynak 1998, Optical Recognition of Handwritten Digits, UCI Machine
    Learning Repository, doi:10.24432/C50P49.
"""

import contextlib
import io
import os
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np

from flowjax.extras import require

tfds = require("tensorflow_datasets", extra="data")

NAME = "sklearn_digits"
MAXIMUM = 16
NUM_TEST = 297


class SklearnDigits(tfds.core.GeneratorBasedBuilder):
    """The handwritten digits of scikit-learn: images [8, 8, 1] in 0..16 and labels."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        features = {
            "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="1,797 handwritten digits, 8 x 8 pixels of 17 grey levels.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing to download
        bunch = require("sklearn.datasets", extra="data").load_digits()
        test = _is_test(bunch.target)
        return {
            "train": self._generate_examples(bunch, np.flatnonzero(~test)),
            "test": self._generate_examples(bunch, np.flatnonzero(test)),
        }

    def _generate_examples(
        self, bunch: Any, rows: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for row in rows.tolist():
            image = bunch.images[row].astype(np.uint8)[..., None]
            yield row, {"image": image, "label": int(bunch.target[row])}


def prepare(data_dir: str | os.PathLike[str] | None = None) -> str:
    """Write the set as ArrayRecord unless it is there, and return its directory.

    Safe when several processes start at once and when one is killed: the files are
    written to a directory of their own and renamed into place as a whole. A killed run
    leaves a directory ``incomplete.<id>`` behind, which nothing reads.

    Args:
        data_dir: root of the prepared sets; by default that of tensorflow-datasets
            ($TFDS_DATA_DIR or ~/tensorflow_datasets).
    """
    builder = SklearnDigits(data_dir=data_dir)
    target = builder.data_path
    if _is_whole(target):
        return os.fspath(target)
    # The builder's own temporary name comes from the global `random` state, so that
    # processes with equal seeds would write into each other's files.
    staging = builder.data_dir_root / f"incomplete.{uuid.uuid4().hex}"
    try:
        staged = SklearnDigits(data_dir=staging, file_format="array_record")
        with _silent():
            staged.download_and_prepare()
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not _is_whole(target):
            # Copied or deleted in part: what is left is put aside, not trusted.
            target.rename(target.parent / f"damaged.{uuid.uuid4().hex}")
        _publish(staged.data_path, target)
    finally:
        staging.rmtree(missing_ok=True)
    return os.fspath(target)


def _is_whole(target: Any) -> bool:
    """Say whether a directory holds the description and the records of both splits."""
    described = all(
        (target / name).exists() for name in ("features.json", "dataset_info.json")
    )
    return described and all(
        any(target.glob(f"*-{split}.array_record*")) for split in ("train", "test")
    )


def _is_test(labels: np.ndarray) -> np.ndarray:
    """Return which rows are test images; see the module's docstring for the rule."""
    steps = NUM_TEST * np.arange(len(labels) + 1) // len(labels)
    test = np.empty(len(labels), dtype=bool)
    test[np.argsort(labels, kind="stable")] = np.diff(steps) == 1
    return test


def _publish(source: Any, target: Any) -> None:
    """Rename ``source`` to ``target``, unless another process has been quicker."""
    try:
        source.rename(target)
    except OSError:
        if not target.exists():
            raise


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Swallow the progress bars and banners that preparing a set prints."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        yield
