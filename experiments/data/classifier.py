"""A small classifier of the real training images: features and labels for metrics."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array


class Classifier(NamedTuple):
    """A trained classifier.

    Attributes:
        features: images [n, h, w, c] -> features of the last hidden layer [n, 64].
        predict: images -> labels [n].
    """

    features: Callable[[np.ndarray], np.ndarray]
    predict: Callable[[np.ndarray], np.ndarray]


class _Network(nn.Module):
    """Three convolutions and a hidden layer; returns features and logits."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        if (factor := x.shape[1] // 32) > 1:  # its judgement needs no finer detail
            x = nn.avg_pool(x, (factor, factor), (factor, factor))
        size = x.shape[1]
        strides = 1 if size < 32 else 2, 2, 1 if size <= 16 else 2
        for width, stride in zip((32, 64, 64), strides, strict=True):
            x = nn.relu(nn.Conv(width, (3, 3), strides=stride)(x))
        x = x.reshape((len(x), -1))
        features = nn.relu(nn.Dense(64)(x))
        return features, nn.Dense(self.num_classes)(features)


def fit(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    seed: int = 0,
    steps: int = 600,
    batch_size: int = 128,
) -> Classifier:
    """Fit a classifier to real images.

    Noise of random strength is added in training, so that the features of imperfect
    samples degrade smoothly instead of jumping.

    Args:
        images: [n, h, w, c] in [-1, 1].
        labels: [n] in 0..num_classes-1.
        num_classes: number of labels.
        seed: determines initialisation and batches.
        steps: optimiser steps.
        batch_size: images per step.
    """
    network = _Network(num_classes)
    key_init, key_train = jax.random.split(jax.random.key(seed))
    params = network.init(key_init, jnp.asarray(images[:1]))
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

    def loss(params: Any, x: Array, y: Array) -> Array:
        logits: Any = network.apply(params, x)[1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params: Any, state: Any, i: Array, x: Array, y: Array) -> Any:
        key_level, key_noise = jax.random.split(jax.random.fold_in(key_train, i))
        level = 0.3 * jax.random.uniform(key_level, (len(x), 1, 1, 1))
        x = x + level * jax.random.normal(key_noise, x.shape)
        updates, state = optimizer.update(jax.grad(loss)(params, x, y), state)
        return optax.apply_updates(params, updates), state

    state, rng = optimizer.init(params), np.random.default_rng(seed)
    for i in range(steps):
        rows = rng.integers(len(images), size=min(batch_size, len(images)))
        params, state = step(params, state, i, images[rows], labels[rows])

    return _judge(network, params)


def random_features(image: np.ndarray, *, seed: int = 0) -> Classifier:
    """Return a network of random weights, the same for every run; it predicts nothing.

    Random features see colour, edges and their places. They rank sets of images that
    have no labels, but their distances compare with no other network's.

    Args:
        image: one image [1, h, w, c], for its shape.
        seed: determines the weights.
    """
    network = _Network(1)
    return _judge(network, network.init(jax.random.key(seed), jnp.asarray(image)))


def _judge(network: _Network, params: Any) -> Classifier:
    apply = jax.jit(network.apply)

    def in_batches(part: int, images: np.ndarray) -> np.ndarray:
        chunks = [images[i : i + 1000] for i in range(0, len(images), 1000)]
        return np.concatenate([np.asarray(apply(params, c)[part]) for c in chunks])  # type: ignore

    return Classifier(
        features=lambda images: in_batches(0, images),
        predict=lambda images: in_batches(1, images).argmax(1),
    )
