"""Conversions round-trip and agree with closed form; derivatives are exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import analytic, fields, interpolants, sampling, times
from flowjax.events import expand_like
from tests.tables import INTERPOLANTS, MIXTURES

pytestmark = pytest.mark.usefixtures("x64")

PREDICTIONS = ("velocity", "x1", "x0", "score")


def truth(prediction, interpolant, name="two_modes_space"):
    """The closed-form field of one prediction."""
    mixture = MIXTURES[name]()
    if prediction == "x0":

        def noise(x, t, cond=None):
            # E[x0 | x_t] = -sigma score, Tweedie's formula.
            sigma = expand_like(interpolant.sigma(t), x)
            return -sigma * analytic.score(mixture, interpolant)(x, t)

        return noise
    named = {
        "velocity": analytic.velocity,
        "x1": analytic.posterior_mean,
        "score": analytic.score,
    }
    return named[prediction](mixture, interpolant)


def run(function):
    """Compile and call ``function``: one program and not one for every operation."""
    return jax.jit(function)()


def points(key, t=(0.1, 0.5, 0.9)):
    t = jnp.array(t)
    return 2 * jax.random.normal(key, (len(t), 3)), t


@pytest.mark.parametrize("source", PREDICTIONS)
@pytest.mark.parametrize("target", PREDICTIONS)
@pytest.mark.parametrize("name", INTERPOLANTS)
def test_every_conversion_agrees_with_closed_form(key, name, source, target):
    interpolant = INTERPOLANTS[name]()
    x, t = points(key)
    convert = fields.reparameterize(
        truth(source, interpolant), interpolant, source=source, target=target
    )
    expected = truth(target, interpolant)(x, t)
    np.testing.assert_allclose(convert(x, t), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("target", ["x1", "x0"])
@pytest.mark.parametrize("name", INTERPOLANTS)
def test_velocity_is_convertible_at_both_ends(key, name, target):
    interpolant = INTERPOLANTS[name]()
    x, t = points(key, t=(0.0, 1.0))
    field = fields.reparameterize(
        truth("velocity", interpolant), interpolant, source="velocity", target=target
    )
    if name == "polynomial":
        # D = -alpha' is zero at t=0 for a power above 1: nothing to divide by.
        x, t = x[1:], t[1:]
    got, expected = run(lambda: (field(x, t), truth(target, interpolant)(x, t)))
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("untyped")
def test_convert_refuses_what_it_cannot_do(key):
    x, t = points(key)
    linear = interpolants.linear()
    latent = linear._replace(gamma=lambda t: t * (1 - t))
    with pytest.raises(ValueError, match="`target` must be one of"):
        fields.convert(x, x, t, linear, source="x1", target="noise")  # type: ignore
    with pytest.raises(ValueError, match="without latent noise"):
        fields.convert(x, x, t, latent, source="x1", target="x0")
    with pytest.raises(ValueError, match=r"got \(3, 3\), and batch is that of `value`"):
        fields.convert(x[:2], x, t, linear, source="x1", target="x0")


def average():
    gaussian = analytic.gaussian(
        jnp.array([0.5, -1.0, 0.0]), jnp.array([0.5, 1.5, 1.0])
    )
    linear = interpolants.linear()
    return (
        analytic.average_velocity(gaussian, linear),
        analytic.velocity(gaussian, linear),
        analytic.flow_map(gaussian, linear),
    )


def test_diagonal_and_flow_map_of_an_average_velocity(key):
    u, v, X = average()
    x, t = points(key)
    s = jnp.array([0.4, 0.1, 1.0])
    here, there = run(lambda: (fields.diagonal(u)(x, t), v(x, t)))
    np.testing.assert_allclose(here, there, rtol=1e-12)
    moved, expected = run(lambda: (fields.flow_map(u)(x, t, s), X(x, t, s)))
    np.testing.assert_allclose(moved, expected, rtol=1e-12)


def test_total_derivative_against_a_difference_along_the_trajectory(key):
    u, v, X = average()
    x, t = points(key)
    s, h = jnp.array([0.4, 0.1, 1.0]), 1e-4

    @run
    def results():
        ahead, behind = (u(X(x, t, t + d), t + d, s) for d in (h, -h))
        total = fields.total_derivative(u, x, t, s, v(x, t))
        return *total, u(x, t, s), ahead, behind

    value, derivative, expected, ahead, behind = results
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(derivative, (ahead - behind) / (2 * h), atol=1e-7)


def test_conditions_reach_the_field(key):
    x, t = points(key)
    scale = lambda x, *rest: x * rest[-1][:, None]  # noqa: E731
    cond = jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(fields.diagonal(scale)(x, t, cond), x * cond[:, None])
    moved = fields.flow_map(scale)(x, t, t + 1, cond)
    np.testing.assert_allclose(moved, x + x * cond[:, None])
    _, derivative = fields.total_derivative(scale, x, t, t, x, cond)
    np.testing.assert_allclose(derivative, x * cond[:, None])
    np.testing.assert_allclose(fields.divergence(scale, x, t, cond), 3 * cond)


@pytest.mark.parametrize("event", [(1,), (3,), (2, 2, 1)])
def test_divergence_is_the_trace_of_the_jacobian(key, event):
    x, t = jax.random.normal(key, (4, *event)), jnp.linspace(0, 1, 4)

    def v(x, t, cond=None):
        flat = x.reshape((len(x), -1))
        mixed = jnp.sin(flat) + jnp.cumsum(flat**2, 1) * t[:, None]
        return mixed.reshape(x.shape)

    slope = jax.vmap(jax.jacfwd(lambda x, t: v(x[None], t[None])[0].ravel()))
    jacobian, got = run(lambda: (slope(x, t), fields.divergence(v, x, t)))
    expected = np.trace(jacobian.reshape((4, x[0].size, -1)), axis1=1, axis2=2)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_hutchinson_is_unbiased_with_the_variance_it_should_have(key):
    matrix = jax.random.normal(key, (3, 3))
    v = lambda x, t, cond=None: x @ matrix.T  # noqa: E731
    x, t = jnp.zeros((20_000, 3)), jnp.zeros(20_000)
    estimate = fields.hutchinson_divergence(key, v, x, t, probes=2)
    symmetric = (matrix + matrix.T) / 2
    variance = 2 * (jnp.sum(symmetric**2) - jnp.sum(jnp.diag(symmetric) ** 2)) / 2
    error = jnp.sqrt(variance / len(x))
    assert abs(estimate.mean() - jnp.trace(matrix)) < 4 * error
    np.testing.assert_allclose(estimate.var(), variance, rtol=0.05)


def test_hutchinson_is_exact_for_a_diagonal_jacobian(key):
    x, t = points(key)
    v = lambda x, t, cond=None: jnp.sin(x)  # noqa: E731
    estimate = fields.hutchinson_divergence(key, v, x, t)
    np.testing.assert_allclose(estimate, jnp.cos(x).sum(1), rtol=1e-12)
    with pytest.raises(ValueError, match="`probes` must be at least 1"):
        fields.hutchinson_divergence(key, v, x, t, probes=0)


# Composition: two jumps, many jumps, derivatives in time and destination.


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0, 1.4, -0.2])
def test_two_jumps_of_the_true_field_are_one(key, fraction):
    mixture = analytic.gaussian(jnp.array([1.5, -0.5]), jnp.array([0.6, 1.2]))
    u = analytic.average_velocity(mixture, interpolants.linear())
    x = jax.random.normal(key, (4, 2))
    t, s = jnp.array([0.3, 0.3, 0.6, 0.4]), jnp.array([0.6, 0.3, 0.35, 0.5])
    composed, expected = run(
        lambda: (fields.compose(u, u, x, t, s, fraction), u(x, t, s))
    )
    np.testing.assert_allclose(composed, expected, atol=1e-12)
    rows = run(lambda: fields.compose(u, u, x, t, s, jnp.full(4, fraction)))
    np.testing.assert_array_equal(composed, rows)


@pytest.mark.parametrize("steps", [1, 3])
def test_chained_jumps_are_few_step_sampling(key, steps):
    mixture = MIXTURES["gaussian"]()
    v = analytic.velocity(mixture, interpolants.linear())
    x = jax.random.normal(key, (5, 1))
    zero, one = jnp.zeros(5), jnp.ones(5)
    end = x + fields.chained(fields.euler_step(v), steps)(x, zero, one)
    grid = times.uniform_grid(steps)
    expected = sampling.few_step(fields.euler_step(v), x, grid=grid)
    np.testing.assert_allclose(end, expected, rtol=1e-12)
    with pytest.raises(ValueError, match="at least 1"):
        fields.chained(fields.euler_step(v), 0)


def test_destination_derivative_obeys_the_lagrangian_identity(key):
    mixture = MIXTURES["gaussian"]()
    linear = interpolants.linear()
    u = analytic.average_velocity(mixture, linear)
    v = analytic.velocity(mixture, linear)
    x = jax.random.normal(key, (4, 1))
    t, s = jnp.array([0.1, 0.5, 0.7, 0.2]), jnp.array([0.9, 0.5, 0.4, 1.0])

    @run
    def results():
        ahead = v(fields.flow_map(u)(x, t, s), s)
        return *fields.destination_derivative(u, x, t, s), u(x, t, s), ahead

    value, slope, expected, ahead = results
    np.testing.assert_allclose(value, expected, rtol=1e-14)
    reach = expand_like(s - t, x)
    np.testing.assert_allclose(value + reach * slope, ahead, atol=1e-12)


def test_difference_quotient_is_first_order(key):
    mixture = MIXTURES["gaussian"]()
    linear = interpolants.linear()
    u = analytic.average_velocity(mixture, linear)
    x = jax.random.normal(key, (4, 1))
    t, s = jnp.full(4, 0.3), jnp.full(4, 0.8)
    v = analytic.velocity(mixture, linear)(x, t)
    exact = fields.total_derivative(u, x, t, s, v)
    errors = []
    for step in (1e-2, 1e-3):
        value, quotient = fields.difference_quotient(u, x, t, s, v, step=step)
        np.testing.assert_array_equal(value, exact[0])
        errors.append(jnp.abs(quotient - exact[1]).max())
    assert 8 < errors[0] / errors[1] < 12
    with pytest.raises(ValueError, match="positive"):
        fields.difference_quotient(u, x, t, s, v, step=0.0)


# Where a prediction says nothing about the velocity.
SINGULAR = {"x1": [1.0], "x0": [0.0], "score": [0.0, 1.0]}


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("source", SINGULAR)
def test_every_prediction_is_integrated_onto_both_ends(key, source, backward):
    """Where the conversion divides by zero, and adaptive steps ask for it."""
    interpolant, name = interpolants.linear(), "round_plane"

    def predicted(x, t, cond=None):
        # What a network does there: anything finite, but not the limit.
        value = truth(source, interpolant, name)(x, t)
        nothing_left = jnp.isin(t, jnp.asarray(SINGULAR[source]))
        return jnp.where(nothing_left[:, None], 0.1, value)

    v = fields.reparameterize(predicted, interpolant, source=source)
    x0 = jax.random.normal(key, (8, 2))
    flow = analytic.flow_map(MIXTURES[name](), interpolant)
    x1 = flow(x0, jnp.zeros(8), jnp.ones(8))
    start, end = (x1, x0) if backward else (x0, x1)
    steps = sampling.Adaptive(t0=float(backward), t1=float(not backward))
    got, stats = jax.jit(lambda x: sampling.ode(v, x, steps=steps))(start)
    assert stats.success
    np.testing.assert_allclose(got, end, atol=2e-4)

    strict = fields.reparameterize(predicted, interpolant, source=source, margin=0.0)
    got, stats = jax.jit(lambda x: sampling.ode(strict, x, steps=steps))(start)
    assert not np.allclose(got, end, atol=1e-2)
