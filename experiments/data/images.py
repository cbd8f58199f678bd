"""Image sets: the digits of scikit-learn, and the sets of tensorflow-datasets."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments import plots
from experiments.data import classifier
from experiments.data.base import (
    Example,
    HeldOut,
    Labelled,
    Measure,
    Reference,
    distances,
)
from flowjax import metrics
from flowjax.data import (
    BatchIterator,
    ImageSource,
    image_batches,
    load_arrays,
    load_source,
)
from flowjax.typing import PRNGKey


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tfds(Labelled):
    """An image set of tensorflow-datasets, prepared by experiments.prepare_data.

    Attributes:
        name: mnist, cifar10, imagenet_resized/64x64, or another prepared set with
            labelled images of one size.
        data_dir: root of the prepared sets; None: that of tensorflow-datasets.
        train_split: records to train on.
        test_split: records held out for the evaluation.
        flip: mirror images left to right at random.
    """

    name: str
    data_dir: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    flip: bool = False

    may_differ: ClassVar = frozenset({"data_dir", "test_split"})

    def _source(self, split: str) -> ImageSource:
        return _load(self.name, split, self.data_dir)

    def example(self) -> Example:
        """Return the shape and the number of classes of the set."""
        source = self._source(self.train_split)
        return Example(source.image_shape, source.num_classes)

    def batches(
        self,
        *,
        batch_size: int,
        seed: int,
        process_index: int | None = None,
        process_count: int | None = None,
    ) -> BatchIterator:
        """Open the training split."""
        return image_batches(
            self._source(self.train_split),
            batch_size=batch_size,
            seed=seed,
            flip=self.flip,
            process_index=process_index,
            process_count=process_count,
        )

    def read(self, key: PRNGKey, batch: Any) -> tuple[Array, Array | None]:
        """Return the images and labels of a batch."""
        return batch["image"], batch["label"]

    def reference(self, count: int, seed: int) -> Reference:
        """Fit a classifier to the training images, and hold samples against it."""
        images, labels = load_arrays(
            self.name, self.train_split, data_dir=self.data_dir
        )
        held_out, held_labels = load_arrays(
            self.name, self.test_split, data_dir=self.data_dir
        )
        classes = self.example().num_classes or 1
        judge = classifier.fit(images, labels, classes, seed=seed)
        rng = np.random.default_rng(seed)
        chosen = rng.permutation(len(images))[:count]
        held = rng.permutation(len(held_out))[:count]
        # Its accuracy on the images that it was fitted to would say nothing.
        accuracy = float((judge.predict(held_out) == held_labels).mean())
        return Reference(
            images[chosen],
            labels[chosen],
            _measure(held_out[held], judge, labels[chosen], seed),
            {"agreement": accuracy},
        )

    def held_out(self, count: int | None, seed: int) -> HeldOut:
        """Return held-out images, drawn without replacement; None: all."""
        source = self._source(self.test_split)
        order = np.random.default_rng(seed).permutation(len(source))
        images, labels = source.gather(order[:count].tolist())
        return HeldOut(source.scale(images), labels, 2 / source.maximum)

    def draw_groups(
        self, groups: Mapping[str, np.ndarray], labels: np.ndarray | None, path: Path
    ) -> None:
        """Draw one row per class (at most ten), the groups side by side."""
        assert labels is not None
        classes = [c for c in np.unique(labels)[:10]]
        columns = min(8, *((labels == c).sum() for c in classes))
        rows = np.stack([np.flatnonzero(labels == c)[:columns] for c in classes])
        plots.image_grid({name: x[rows] for name, x in groups.items()}, path)

    def draw_samples(self, title: str, x: np.ndarray, path: Path) -> None:
        """Draw samples in rows of ten."""
        columns = min(10, len(x))
        rows = len(x) // columns
        tiled = x[: rows * columns].reshape((rows, columns, *x.shape[1:]))
        plots.image_grid({title: tiled}, path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits(Tfds):
    """The 8 x 8 handwritten digits inside scikit-learn, prepared on first use.

    Attributes:
        name: not an option: the digits.
    """

    name: str = dataclasses.field(default="digits", init=False)


# Opening is asked for in several places; the decoded images are one array.
@functools.lru_cache(maxsize=4)
def _load(name: str, split: str, data_dir: str | None) -> ImageSource:
    return load_source(name, split, data_dir=data_dir)


def _measure(
    held_out: np.ndarray, judge: classifier.Classifier, labels: np.ndarray, seed: int
) -> Measure:
    real = judge.features(held_out)

    def measure(x: np.ndarray) -> dict[str, float]:
        fake = judge.features(x)
        pair = jnp.asarray(real), jnp.asarray(fake)
        spread = metrics.precision_recall(*pair)
        cover = metrics.density_coverage(*pair)
        return {
            "agreement": float((judge.predict(x) == labels).mean()),
            "Fréchet": float(metrics.frechet_distance(fake, real)),
            **distances(x, held_out, jax.random.key(seed)),
            "precision": float(spread.precision),
            "recall": float(spread.recall),
            "coverage": float(cover.coverage),
        }

    return measure
