"""Bound the bits per dimension of held-out images under the velocity of a run.

    python -m experiments.likelihood runs/digits_mean_flow
    python -m experiments.likelihood runs/digits_mean_flow --importance 8 --repeats 4

The model is that of the ODE sampler, given the labels where the run has any. It was
trained on the discrete pixel values themselves; the better it knows them, the more its
density grows towards t=1. By default values are therefore spread by the noise of the
path, and the density is taken at the time at which that noise just fits the cell of a
value. A network that is still smooth at that scale has the lower bound under
``--bound uniform``. Writes likelihood.json into the run folder.

An exact divergence takes minutes for the digits on two cores; ``--probes 1`` takes
seconds and has the same mean.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from jaxtyping import Array

from experiments.engine import run as run_folder
from experiments.engine.files import write_atomically
from experiments.engine.run import Trained
from experiments.entry import entry_point
from flowjax.interpolants import Interpolant, time_of_ratio
from flowjax.likelihood import dequantisation, draw_probes, log_density
from flowjax.likelihood.dequantisation import Dequantisation
from flowjax.sampling import Adaptive


@dataclasses.dataclass(frozen=True)
class Options:
    """What to estimate, and how well."""

    bound: Literal["truncated_normal", "uniform"] = "truncated_normal"
    """Spread values by the noise of the path, before t=1, or evenly, at t=1. The latter
    suits networks that were trained on evenly spread values."""
    repeats: int = 1
    """Independent estimates per example, averaged."""
    importance: int = 1
    """Draws per estimate; more than one give the tighter importance-weighted bound."""
    probes: int = 0
    """Probes of Hutchinson's estimate of the divergence; 0 is exact, at the cost of one
    derivative per pixel."""
    examples: int | None = None
    """Held-out examples, drawn without replacement; None: all."""
    tau: float = 3.0
    """Half the width of a cell in standard deviations of the path's noise, which sets
    the time of truncated_normal."""
    tolerance: float = 1e-4
    """rtol and atol of the adaptive solver."""
    batch_size: int = 100
    """Examples solved at a time."""
    seed: int = 0
    """Determines the examples and all noise."""

    def __post_init__(self) -> None:
        """Refuse what would fail or mislead."""
        for name in ("repeats", "importance", "tau", "tolerance", "batch_size"):
            if not (value := getattr(self, name)) > 0:
                raise ValueError(f"{name} must be positive; got {value}")
        if self.probes < 0 or (self.examples is not None and self.examples < 2):
            raise ValueError(
                "probes must not be negative and examples at least 2; got "
                f"{self.probes} and {self.examples}"
            )
        if self.importance > 1 and self.probes:
            raise ValueError(
                "importance needs the exact divergence, probes 0: weights of an "
                "estimate are too large in the mean, and the result is no bound"
            )


def estimate(trained: Trained, options: Options) -> dict[str, float]:
    """Return the bits per dimension of a run with their standard error over examples.

    Raises:
        ValueError: if the run has no velocity or no discrete data.
        FloatingPointError: if a solve failed.
    """
    trained.need_velocity("a density")
    example = trained.model.example
    step = example.form.step
    data = trained.experiment.data.build()
    row = data.draw(options.examples, options.seed, held_out=True)
    x, cond = row["x"], example.conditions.join(row)
    path = trained.model.path
    if options.bound == "uniform":
        time, law = 1.0, dequantisation.uniform_noise(step)
    else:
        time = end_time(path, step, options.tau)
        law = dequantisation.truncated_normal_noise(path, time, step=step)
    bits = jax.jit(partial(_bits, trained, law, time, options))
    values = _mean_over_repeats(partial(bits, trained.params), x, cond, options)
    return {
        "bits_per_dimension": float(values.mean()),
        "standard_error": float(values.std(ddof=1) / math.sqrt(len(values))),
        "examples": len(values),
        "time": time,
        "step": trained.step,
    }


def end_time(path: Interpolant, step: float, tau: float) -> float:
    """Return the time at which half a cell is ``tau`` deviations of the noise wide.

    ``alpha step / 2 = tau sigma``. For the linear path and a small ``step`` this is
    close to ``1 - step / (2 tau)``.
    """
    return float(time_of_ratio(path, step / (2 * tau)))


def _bits(
    trained: Trained,
    law: Dequantisation,
    time: float,
    options: Options,
    params: Any,
    key: Any,
    x: Any,
    cond: Any,
) -> Array:
    """Return one estimate of the bits per dimension of every row; traceable."""
    key_noise, key_probes = jax.random.split(key)
    velocity, tolerance = trained.velocity(params, 1.0), options.tolerance

    def density(z: Array) -> Array:
        probes = None
        if options.probes:
            probes = draw_probes(key_probes, z, options.probes)
        return log_density(
            velocity,
            z,
            cond=cond,
            probes=probes,
            steps=Adaptive(rtol=tolerance, atol=tolerance, t0=time, t1=0.0),
        )[0]

    if options.importance == 1:
        value = dequantisation.evidence_bound(key_noise, density, x, law)
    else:
        value = dequantisation.importance_weighted_bound(
            key_noise, density, x, law, samples=options.importance
        )
    return dequantisation.bits_per_dimension(value, x)


def _mean_over_repeats(
    bits: Callable[..., Array],
    x: np.ndarray,
    cond: Any,
    options: Options,
) -> np.ndarray:
    """Return ``bits(key, x, cond)`` of every example, averaged over the repeats."""
    values = np.zeros((options.repeats, len(x)))
    # The last batch is filled up with the first examples: one shape, one compilation.
    size = min(options.batch_size, len(x))
    for repeat in range(options.repeats):
        key = jax.random.fold_in(jax.random.key(options.seed), repeat)
        for start in range(0, len(x), size):
            rows = np.arange(start, start + size) % len(x)
            chosen = jax.tree.map(lambda leaf: leaf[rows], cond)  # noqa: B023
            values[repeat, rows] = bits(jax.random.fold_in(key, start), x[rows], chosen)
    failed = ~np.isfinite(values).all(0)
    if failed.any():
        raise FloatingPointError(
            f"the density of {failed.sum()} of {len(x)} examples is not finite: the "
            "solver failed or the network diverged"
        )
    return values.mean(0)


@entry_point
def main(
    run: tyro.conf.Positional[Path],
    options: tyro.conf.OmitArgPrefixes[Options] = Options(),
) -> None:
    """Bound the bits per dimension of a run's newest checkpoint from above.

    Args:
        run: the run folder.
        options: what to estimate, and how well.
    """
    figures = estimate(run_folder.restore(run), options)
    result = figures | {"options": dataclasses.asdict(options)}
    write_atomically(run / "likelihood.json", json.dumps(result, indent=2) + "\n")
    print(
        f"at most {figures['bits_per_dimension']:.4f} bits per dimension, standard "
        f"error {figures['standard_error']:.4f} over {figures['examples']} held-out "
        f"examples ({options.bound}, density at t={figures['time']:.4f}): "
        f"{run / 'likelihood.json'}"
    )


if __name__ == "__main__":
    tyro.cli(main)
