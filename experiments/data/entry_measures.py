"""How samples of vectors and tables differ from real ones, by entry and jointly."""

import math

import jax.numpy as jnp
import numpy as np

from flowjax import metrics
from flowjax.extras import require


def by_entry(x: np.ndarray, held_out: np.ndarray, seed: int) -> dict[str, float]:
    """Return distances of the entries' laws, their correlations and the joint law."""
    dim = x.shape[1]
    chosen = np.random.default_rng(seed).permutation(dim)[:64]
    x, held_out = x[:, chosen], held_out[:, chosen]
    figures = {
        "column W1": float(
            np.mean(
                [
                    metrics.wasserstein_1d(jnp.asarray(a), jnp.asarray(b))
                    for a, b in zip(x.T, held_out.T, strict=True)
                ]
            )
        )
    }
    if len(chosen) > 1:
        with np.errstate(invalid="ignore", divide="ignore"):  # a constant entry
            error = np.corrcoef(x.T) - np.corrcoef(held_out.T)
        off = error[np.triu_indices(len(chosen), 1)]
        figures["correlation"] = math.sqrt(np.mean(np.square(np.nan_to_num(off))))
    return figures | {"C2ST": _two_sample_accuracy(x, held_out, seed)}


def _two_sample_accuracy(x: np.ndarray, other: np.ndarray, seed: int) -> float:
    """Return how often a classifier, fitted to one half, tells the other half apart.

    References:
        Lopez-Paz and Oquab 2017, Revisiting Classifier Two-Sample Tests,
        arXiv:1610.06545.
    """
    ensemble = require("sklearn.ensemble", extra="data")
    selection = require("sklearn.model_selection", extra="data")
    n = min(len(x), len(other), 2000)
    rows = np.concatenate([x[:n], other[:n]])
    sides = np.repeat([0, 1], n)
    if n < 10:
        return math.nan
    judge = ensemble.RandomForestClassifier(
        100, min_samples_leaf=5, random_state=seed, n_jobs=1
    )
    folds = selection.StratifiedKFold(2, shuffle=True, random_state=seed)
    return float(selection.cross_val_score(judge, rows, sides, cv=folds).mean())
