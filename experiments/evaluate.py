"""Measure the samples of a run against held-out data, each beside real data.

    python -m experiments.evaluate runs/digits_mean_flow

Writes evaluation.json, evaluation.md, samples.png and loss.png into the run folder. The
row "real" is training data measured like samples, what a perfect model would get; its
agreement is the classifier's accuracy on the held-out data.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import classifier, plots, samplers
from experiments import run as run_folder
from experiments.choices import Guidance
from experiments.members import MEMBERS
from experiments.run import Trained
from flowjax import metrics
from flowjax.data import DENSITIES, get_density, load_arrays

Measure = Callable[[np.ndarray], dict[str, float]]


class Reference(NamedTuple):
    """What samples are compared with.

    Attributes:
        real: training examples, measured like samples.
        labels: labels to sample with, those of ``real``; None without classes.
        measure: samples [n, *event], in the order of ``labels`` -> figures.
        accuracy: of the classifier on held-out data; None without classes. Its accuracy
            on ``real``, which it was fitted to, would say nothing.
    """

    real: np.ndarray
    labels: np.ndarray | None
    measure: Measure
    accuracy: float | None = None


def evaluate(run: Path, *, progress: bool = True) -> dict[str, dict[str, float]]:
    """Evaluate the newest checkpoint of a run and write the results into its folder.

    Returns:
        Figures by sampler and name.
    """
    trained = run_folder.restore(run)
    options = trained.config.evaluation
    reference = _reference(trained)
    table = {"real": {"evaluations": 0} | reference.measure(reference.real)}
    if reference.accuracy is not None:
        table["real"]["agreement"] = reference.accuracy
    groups = {"real": reference.real}
    for name, sampler in _samplers(trained).items():
        x, evaluations = samplers.draw(
            trained,
            sampler,
            reference.labels,
            count=len(reference.real),
            seed=options.seed,
            batch_size=options.batch_size,
        )
        groups[name] = x
        table[name] = {"evaluations": evaluations} | reference.measure(x)
    text = _markdown(table)
    result = {"step": trained.step, "samples": len(reference.real), "figures": table}
    run_folder.write_atomically(
        run / "evaluation.json", json.dumps(result, indent=2) + "\n"
    )
    run_folder.write_atomically(run / "evaluation.md", text)
    _draw(groups, reference.labels, run / "samples.png")
    plots.loss_curves(run_folder.read_metrics(run / "metrics.jsonl"), run / "loss.png")
    if progress:
        print(f"\n{len(reference.real)} samples against held-out data:\n\n{text}")
        print(f"pictures, figures and checkpoints are in {run}", flush=True)
    return table


def _samplers(trained: Trained) -> dict[str, samplers.Sampler]:
    options = trained.config.evaluation
    guide = Guidance(options.guidance)
    chosen = {f"{n}-step": samplers.jumps(trained, n, guide) for n in options.steps}
    if MEMBERS[trained.config.objective.name].velocity:
        chosen["ODE"] = samplers.adaptive(trained, options.tolerance, guide)
    return chosen


def _reference(trained: Trained) -> Reference:
    data, options = trained.config.data, trained.config.evaluation
    if data.name in DENSITIES:
        density = get_density(data.name)
        key_real, key_held_out = jax.random.split(jax.random.key(options.seed))
        real = np.asarray(density(key_real, options.samples))
        held_out = np.asarray(density(key_held_out, options.samples))
        return Reference(real, None, _point_measure(held_out, options.seed))
    images, labels = load_arrays(data.name, data.train_split, data_dir=data.data_dir)
    held_out, held_labels = load_arrays(
        data.name, data.test_split, data_dir=data.data_dir
    )
    judge = classifier.fit(images, labels, trained.num_classes or 1, seed=options.seed)
    rng = np.random.default_rng(options.seed)
    chosen = rng.permutation(len(images))[: options.samples]
    held = rng.permutation(len(held_out))[: options.samples]
    return Reference(
        images[chosen],
        labels[chosen],
        _image_measure(held_out[held], judge, labels[chosen], options.seed),
        accuracy=float((judge.predict(held_out) == held_labels).mean()),
    )


def _distances(x: np.ndarray, held_out: np.ndarray, seed: int) -> dict[str, float]:
    flat, other = (jnp.asarray(a.reshape((len(a), -1))) for a in (x, held_out))
    return {
        "sliced W2": float(
            metrics.sliced_wasserstein2(jax.random.key(seed), flat, other)
        ),
        "MMD2 x1000": 1000 * float(metrics.mmd2(flat, other)),
    }


def _point_measure(held_out: np.ndarray, seed: int) -> Measure:
    def measure(x: np.ndarray) -> dict[str, float]:
        n = min(len(x), len(held_out), 1000)
        exact = metrics.wasserstein2(jnp.asarray(x[:n]), jnp.asarray(held_out[:n]))
        return _distances(x, held_out, seed) | {"W2": float(exact)}

    return measure


def _image_measure(
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
            **_distances(x, held_out, seed),
            "precision": float(spread.precision),
            "recall": float(spread.recall),
            "coverage": float(cover.coverage),
        }

    return measure


def _markdown(table: Mapping[str, Mapping[str, Any]]) -> str:
    columns = list(next(iter(table.values())))
    lines = [
        "| sampler | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, row in table.items():
        cells = (f"{row[c]:.4g}" for c in columns)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _draw(
    groups: Mapping[str, np.ndarray], labels: np.ndarray | None, path: Path
) -> None:
    """Draw one row per class (at most ten), real and sampled side by side."""
    if labels is None:
        plots.point_clouds(groups, path)
        return
    classes = [c for c in np.unique(labels)[:10]]
    columns = min(8, *((labels == c).sum() for c in classes))
    rows = np.stack([np.flatnonzero(labels == c)[:columns] for c in classes])
    plots.image_grid({name: x[rows] for name, x in groups.items()}, path)


def main(run: tyro.conf.Positional[Path]) -> None:
    """Evaluate a run.

    Args:
        run: the run folder.
    """
    try:
        evaluate(run)
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    tyro.cli(main)
