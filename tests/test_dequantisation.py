"""Bounds on the probabilities of discrete data."""

import math
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf
from scipy.stats import norm

from experiments import configs
from experiments import likelihood as bits
from experiments.data import Conditions, Example
from experiments.data.forms import ImageForm
from experiments.engine import run
from experiments.engine.model import Model
from experiments.engine.some_conditions import SomeConditions
from flowjax import analytic, interpolants
from flowjax.data import load_arrays
from flowjax.likelihood import dequantisation, log_density, standard_normal
from flowjax.sampling import Adaptive

pytestmark = pytest.mark.usefixtures("x64")

LINEAR = interpolants.linear()
BOUNDS = (dequantisation.evidence_bound, dequantisation.importance_weighted_bound)
IDS = ("evidence", "weighted")
STEP = 0.5
LEVELS = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
SHARES = np.array([0.1, 0.35, 0.05, 0.3, 0.2])


def truncated(sigma):
    """The noise of a path at ``alpha = 0.9``, and the width of a cell there."""
    path = interpolants.Interpolant(
        lambda t: 0.9 * jnp.ones_like(t), lambda t: sigma * jnp.ones_like(t)
    )
    draw = dequantisation.truncated_normal_noise(path, 0.5, step=STEP)
    return draw, 0.9 * STEP, 0.9


NOISES = {
    "uniform": (dequantisation.uniform_noise(STEP), STEP, 1.0),
    "narrow": truncated(0.08),
    "wide": truncated(0.2),
}


def discrete_data(seed, batch, size):
    index = np.random.default_rng(seed).choice(5, p=SHARES, size=(batch, size))
    return jnp.asarray(LEVELS[index]), np.log(SHARES)[index].sum(1)


def steps_density(x, scale=1.0):
    """The density that is constant on each cell and has the mass of `SHARES`."""
    index = jnp.round(x / (STEP * scale) + 2).astype(int)
    density = jnp.asarray(np.log(SHARES / (STEP * scale)))[index]
    return density.reshape(len(x), -1).sum(1)


@pytest.mark.parametrize("name", NOISES)
def test_noise_fills_its_cell(name, key):
    draw, width, alpha = NOISES[name]
    x = jnp.broadcast_to(jnp.array([[-0.5, 1.0]]), (20000, 2))
    z, log_q, mean_log_q = draw(key, x)
    offset = (z - alpha * x) / width
    assert np.abs(offset).max() <= 0.5
    assert np.ptp(offset) > 0.95
    np.testing.assert_allclose(offset.mean(0), 0, atol=4 * math.sqrt(1 / 12 / 20000))
    error = 4 * float(log_q.std()) / math.sqrt(len(x))
    np.testing.assert_allclose(log_q.mean(), mean_log_q, atol=error + 1e-12)
    if name != "narrow":  # E_q[1 / q] is the volume of the cell
        volume = jnp.exp(-log_q)
        error = 4 * float(volume.std()) / math.sqrt(len(x))
        np.testing.assert_allclose(volume.mean(), width**2, atol=error + 1e-12)


def test_latent_noise_counts_as_noise(key):
    path = LINEAR._replace(gamma=lambda t: t * (1 - t))
    x = jnp.zeros((20000, 1))
    z = dequantisation.truncated_normal_noise(path, 0.8, step=50.0)(key, x).z
    # The relative standard error of a deviation is 1 / sqrt(2 n).
    assert float(z.std()) == pytest.approx(math.hypot(0.2, 0.16), rel=0.02)


@pytest.mark.parametrize("bound", BOUNDS, ids=IDS)
def test_uniform_noise_is_tight_for_a_density_of_steps(bound, key):
    x, truth = discrete_data(0, 6, 3)
    for scale in (1.0, 127.5):  # the scaling of the data does not matter
        density = partial(steps_density, scale=scale)
        draw = dequantisation.uniform_noise(STEP * scale)
        value = bound(key, density, x * scale, draw, samples=3)
        np.testing.assert_allclose(value, truth, atol=1e-10)


def test_bits_of_a_known_law(key):
    # Every level as often as its share says: the mean is the entropy.
    x = jnp.asarray(np.repeat(LEVELS, (SHARES * 20).round().astype(int))[:, None])
    x = jnp.concatenate([x, jnp.flip(x)], axis=1)[:, :, None]
    draw = dequantisation.uniform_noise(STEP)
    bound = dequantisation.evidence_bound(key, steps_density, x, draw)
    bits = dequantisation.bits_per_dimension(bound, x)
    assert bits.shape == (20,)
    assert float(bits.mean()) == pytest.approx(-(SHARES * np.log2(SHARES)).sum())


def test_bytes_of_a_flat_density_are_eight_bits(key):
    # The usual bookkeeping: -log p / (D log 2) + log2(128) on 256 bins of [-1, 1].
    x = jnp.asarray((2 * np.arange(256) + 1) / 256 - 1)[:, None]
    flat = lambda z: jnp.full(len(z), -math.log(2))  # noqa: E731
    bound = dequantisation.evidence_bound(
        key, flat, x, dequantisation.uniform_noise(2 / 256)
    )
    bits = dequantisation.bits_per_dimension(bound, x)
    np.testing.assert_allclose(bits, 8, rtol=1e-12)


def test_truncated_noise_is_tight_for_the_model_of_discrete_data(key):
    time, size = 0.96, 2  # the neighbours are six deviations off and more
    grid = np.stack(np.meshgrid(LEVELS, LEVELS, indexing="ij"), -1).reshape(25, 2)
    law = analytic.mixture(np.outer(SHARES, SHARES).ravel(), grid, 0.0)
    field = analytic.velocity(law, LINEAR)
    x, truth = discrete_data(1, 40, size)
    tau = time * STEP / (2 * (1 - time))

    def density(z):
        return log_density(field, z, steps=Adaptive(1e-7, 1e-7, t0=time, t1=0.0))[0]

    draw = dequantisation.truncated_normal_noise(LINEAR, time, step=STEP)
    expected = truth + size * math.log(erf(tau / math.sqrt(2)))
    evidence, weighted = jax.jit(
        lambda x: [bound(key, density, x, draw, samples=8) for bound in BOUNDS]
    )(x)
    np.testing.assert_allclose(weighted, expected, atol=1e-5)
    # The closed-form mean leaves the noise of |e|^2 / 2 in one draw.
    error = (evidence - expected).mean()
    assert abs(error) < 4 * math.sqrt(size / 2 / (8 * 40))


@pytest.mark.parametrize("name", ["uniform", "wide"])
def test_bounds_are_ordered_and_tighten(name, key):
    draw, width, alpha = NOISES[name]
    mean, std, batch = 0.2, 0.15, 4000
    x = jnp.full((batch, 1), 0.5)
    density = lambda z: jax.scipy.stats.norm.logpdf(z[:, 0], mean, std)  # noqa: E731
    walls = alpha * 0.5 + np.array([-width, width]) / 2
    truth = math.log(np.diff(norm.cdf(walls, mean, std))[0])

    def estimate(bound, samples):
        values = bound(key, density, x, draw, samples=samples)
        return float(values.mean()), float(values.std()) / math.sqrt(batch)

    evidence, weighted = BOUNDS
    first = estimate(evidence, 1)
    if name == "uniform":  # the mean of a parabola
        nearby = norm.logpdf(0.5, mean, std) + math.log(STEP) - (STEP / std) ** 2 / 24
        assert abs(first[0] - nearby) < 4 * first[1]
    # One draw of the weighted bound is the evidence bound.
    one = estimate(weighted, 1)
    assert abs(first[0] - one[0]) < 4 * math.hypot(first[1], one[1])
    rising = [first, *(estimate(weighted, k) for k in (2, 8, 64)), (truth, 0.0)]
    for (low, low_error), (high, high_error) in pairwise(rising):
        assert low < high + 4 * (low_error + high_error)
    assert first[0] < rising[1][0] - 0.02
    # The bias is the variance of a weight / (2 K): 0.02 in the worse case.
    assert rising[-2][0] == pytest.approx(truth, abs=0.05)


@pytest.mark.parametrize("bound", BOUNDS, ids=IDS)
def test_a_failed_log_density_shows_in_its_row(bound, key):
    broken = lambda z: jnp.where(jnp.arange(len(z)) == 1, jnp.nan, steps_density(z))  # noqa: E731
    x, truth = discrete_data(0, 3, 2)
    value = bound(key, broken, x, dequantisation.uniform_noise(STEP), samples=2)
    assert np.isnan(value[1])
    np.testing.assert_allclose(np.delete(value, 1), np.delete(truth, 1), atol=1e-10)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_dtypes(dtype, key):
    expected = jnp.float64 if dtype == "float64" else jnp.float32
    x = jnp.ones((1, 2, 2, 1), dtype)
    for draw in (dequantisation.uniform_noise(0.5), truncated(0.1)[0]):
        for bound in BOUNDS:
            value = bound(key, standard_normal, x, draw, samples=2)
            assert (value.shape, value.dtype) == ((1,), expected)
            assert np.isfinite(value).all()


@pytest.mark.slow
def test_an_experiment_knows_the_values_of_the_digits():
    """A field at rest has the density of noise at every time: a parabola per pixel."""
    options = {"probes": 1, "examples": 60, "batch_size": 25}
    with jax.enable_x64(False):
        # A network is at rest at the start.
        model = Model(
            configs.get(configs.DEFAULT),
            Example((8, 8, 1), Conditions(10), ImageForm(maximum=16)),
        )
        with jax.numpy_dtype_promotion("standard"):
            state = model.init(jax.random.key(0))
        some = SomeConditions(model.example, {})
        trained = run.Trained(model, 0, state.params, state, some)
        result = {
            bound: bits.estimate(trained, bits.Options(bound=bound, **options))
            for bound in ("uniform", "truncated_normal")
        }
    x = load_arrays("digits", "test")[0]
    np.testing.assert_array_equal(np.unique(x), np.linspace(-1, 1, 17))
    x = x[np.random.default_rng([0, True]).permutation(len(x))[:60]].reshape(60, 64)
    step, time = 1 / 8, result["truncated_normal"]["time"]
    assert time * step / 2 == pytest.approx(3 * (1 - time), rel=1e-4)
    # Noise of variance s^2 lowers the mean of log p by s^2 / 2.
    square = 1 - 6 * norm.pdf(3) / erf(3 / math.sqrt(2))
    entropy = square / 2 + math.log(math.sqrt(2 * math.pi) * (1 - time))
    entropy += math.log(erf(3 / math.sqrt(2)))
    means = {
        "uniform": norm.logpdf(x) - step**2 / 24 + math.log(step),
        "truncated_normal": norm.logpdf(time * x)
        - square * (1 - time) ** 2 / 2
        + entropy,
    }
    for bound, nats in means.items():
        truth = -nats.mean(1) / math.log(2)
        # z^2 / 2 scatters by the noise of z, of deviation 0.04 at most, times |z| <= 1.
        error = 4 * 0.04 / math.log(2) / math.sqrt(60 * 64)
        assert abs(result[bound]["bits_per_dimension"] - truth.mean()) < error
        spread = truth.std(ddof=1) / math.sqrt(60)
        assert result[bound]["standard_error"] == pytest.approx(spread, rel=0.1)


@pytest.mark.usefixtures("untyped")
def test_bad_arguments(key):
    x = jnp.ones((2, 3))
    draw = dequantisation.uniform_noise(1.0)
    noise = partial(dequantisation.truncated_normal_noise, LINEAR)
    evidence, weighted = BOUNDS
    for call, message in [
        (partial(dequantisation.uniform_noise, 0.0), "`step` must be positive"),
        (partial(noise, 0.9, step=-1.0), "`step` must be positive"),
        (partial(noise, 1.0, step=1.0), r"`time` must lie in \(0, 1\)"),
        (
            partial(evidence, key, standard_normal, x, draw, samples=0),
            "must be at least 1",
        ),
        (partial(weighted, key, jnp.abs, x, draw, samples=2), "must return"),
        (
            partial(dequantisation.bits_per_dimension, jnp.ones(3), x),
            "batch is that of `log_probability`",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
