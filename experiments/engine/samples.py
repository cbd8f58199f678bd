"""Drawing samples from a run, batch by batch, every sample from noise of its own."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.engine.model import NO_GUIDANCE, Guidance
from experiments.engine.run import Trained
from experiments.engine.sampling import Sampler


class Samples(NamedTuple):
    """What one sampler gave.

    Attributes:
        x: samples [n, *event].
        evaluations: network evaluations per sample; the adaptive solver's are the
            largest over the batches.
    """

    x: np.ndarray
    evaluations: int


def draw(
    trained: Trained,
    sampler: Sampler,
    row: Mapping[str, np.ndarray],
    *,
    count: int,
    seed: int,
    batch_size: int,
    guide: Guidance = NO_GUIDANCE,
) -> Samples:
    """Draw ``count`` samples, ``batch_size`` at a time.

    The noise that sample i starts from depends on the seed and i alone: samplers are
    compared on the same noise, whatever the batch size. A sampler that draws more on
    its way draws it per batch.

    Args:
        trained: the run.
        sampler: how.
        row: the conditions of the samples by name, as the data give them; more is not
            read.
        count: how many.
        seed: determines the noise.
        batch_size: how many at a time.
        guide: guidance.

    Raises:
        ValueError: if a label is out of range, or the run can't be sampled or guided in
            this way.
        FloatingPointError: if a sample is not finite, as after a failed solve.
    """
    model = trained.model
    conditions = model.example.conditions
    if "label" in conditions.kinds:
        row = {**row, "label": conditions.check_labels(row["label"])}
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(
        jnp.arange(count)
    )
    noise = jax.jit(jax.vmap(lambda key: model.noise(key, 1)[0]))

    @jax.jit
    def sample(params: Any, key: Any, x0: Any, cond: Any) -> Any:
        return sampler(model.field(params, guide), key, x0, cond)

    parts, evaluations = [], 0
    for start in range(0, count, batch_size):
        rows = slice(start, min(start + batch_size, count))
        cond = conditions.join({k: jnp.asarray(row[k][rows]) for k in conditions.kinds})
        key = jax.random.fold_in(keys[start], 1)
        x, nfe = sample(trained.params, key, noise(keys[rows]), cond)
        if not np.isfinite(x).all():
            raise FloatingPointError(
                f"samples {rows.start} to {rows.stop - 1} are not all finite: the "
                "solver failed or the network diverged"
            )
        parts.append(np.asarray(x))
        evaluations = max(evaluations, int(nfe))
    return Samples(np.concatenate(parts), evaluations)
