"""Log-densities of flows against closed forms, and training by them."""

import dataclasses
import json
import math
from functools import partial
from itertools import pairwise

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.linalg import expm
from scipy.stats import norm

from flowjax import analytic, fields, interpolants, likelihood
from flowjax.sampling import Adaptive
from flowjax.sampling.steps import worst_row
from tests.tables import MIXTURES
from tests.test_experiments import call

pytestmark = pytest.mark.usefixtures("x64")

BACK = Adaptive(t0=1.0, t1=0.0)
TIGHT = dataclasses.replace(BACK, rtol=1e-9, atol=1e-9)
GRID = {"steps": np.linspace(1, 0, 13), "solver": diffrax.Dopri5()}
LINEAR = interpolants.linear()
VP = interpolants.trigonometric()

A = np.array([[0.3, 0.8, -0.2], [-0.1, -0.4, 0.5], [0.6, 0.2, 0.4]])


def problem(name):
    """A law of the data and points to look at."""
    if name == "gaussian":
        mean = np.linspace(-1, 1, 4).reshape(2, 1, 2)
        return analytic.gaussian(mean, np.abs(mean) + 0.2), jnp.asarray(mean[None] + 1)
    means = [[-1.0, 0.5], [1.0, 1.0], [0.3, -1.0]]
    law = analytic.mixture([0.5, 0.2, 0.3], means, 0.4)
    return law, points(6, 2)


def points(*shape):
    return jnp.asarray(np.random.default_rng(1).normal(size=shape))


def linear_field(x, t, cond=None):
    return x @ jnp.asarray(A, x.dtype).T


def curved(x, t, cond=None):
    """A field without symmetries, rows apart, of any dimension; ``cond`` scales it."""
    mixed = jnp.sin(jnp.roll(x, 1, axis=-1) + 2 * t[:, None]) * x
    scale = 1.0 if cond is None else cond[:, None]
    return scale * (mixed + jnp.cos(x))


def average(x, t, s, cond=None):
    """An average velocity whose jumps of length one are one-to-one, but of no flow."""
    return 0.3 * curved(x, t, cond) + 0.1 * (s - t)[:, None]


def solve(field, x1, **options):
    return jax.jit(lambda x: likelihood.log_density(field, x, **options))(x1)


# Closed forms


@pytest.mark.parametrize(
    ("name", "interpolant", "t0", "t1", "exact"),
    [
        ("gaussian", LINEAR, 1.0, 0.0, True),
        ("gaussian", VP, 1.0, 0.0, False),  # a diagonal Jacobian: one probe is exact
        ("mixture", LINEAR, 1.0, 0.0, True),
        ("mixture", VP, 0.7, 0.2, True),  # noisy data, and a source that is not normal
    ],
)
def test_closed_form(name, interpolant, t0, t1, exact, key):
    law, x1 = problem(name)
    marginal = analytic.log_density(law, interpolant)
    options = {"steps": dataclasses.replace(TIGHT, t0=t0, t1=t1)}
    if t1 > 0:
        options["source"] = lambda x: marginal(x, jnp.full(len(x), t1))
    if not exact:
        options["probes"] = likelihood.draw_probes(key, x1)
    value, stats = solve(analytic.velocity(law, interpolant), x1, **options)
    truth = marginal(x1, jnp.full(len(x1), t0))
    np.testing.assert_allclose(value, truth, atol=1e-6, rtol=0)
    assert stats.success


def test_standard_normal():
    x = points(3, 2, 2)
    truth = norm.logpdf(x).sum((1, 2))
    np.testing.assert_allclose(likelihood.standard_normal(x), truth)


def test_a_flow_map_model_has_the_density_of_its_diagonal():
    law, x1 = problem("gaussian")
    v = fields.diagonal(analytic.average_velocity(law, LINEAR))
    truth = analytic.log_density(law, LINEAR)(x1, jnp.ones(len(x1)))
    np.testing.assert_allclose(solve(v, x1, steps=TIGHT)[0], truth, atol=1e-6)


def test_every_density_integrates_to_one():
    x = jnp.linspace(-30, 30, 6001)[:, None]
    steps = dataclasses.replace(BACK, rtol=1e-7, atol=1e-7)
    density, stats = solve(curved, x, steps=steps)
    assert stats.success
    assert float(jnp.exp(density).sum() * 0.01) == pytest.approx(1, abs=1e-5)
    jumps = likelihood.few_step_log_density(average, x, grid=(1.0, 0.4, 0.0))
    assert float(jnp.exp(jumps).sum() * 0.01) == pytest.approx(1, abs=1e-5)


def test_samples_know_their_density():
    x0, cond = points(5, 3), jnp.linspace(0.5, 1.5, 5)
    steps = Adaptive(rtol=1e-9, atol=1e-9)
    integrate = jax.jit(
        lambda x: likelihood.ode_log_det(curved, x, cond=cond, steps=steps)[:2]
    )
    x1, volume = integrate(x0)
    value, _ = solve(curved, x1, cond=cond, steps=TIGHT)
    expected = likelihood.standard_normal(x0) - volume
    np.testing.assert_allclose(value, expected, atol=1e-6)


# Hutchinson's estimate


def test_probes_are_white(key):
    for law, kurtosis in (("rademacher", 1.0), ("normal", 3.0)):
        probes = likelihood.draw_probes(key, jnp.zeros((10000, 2, 2)), 3, law=law)
        assert (probes.shape, probes.dtype) == ((10000, 3, 2, 2), jnp.float64)
        flat = probes.reshape(10000, 12)
        moment = flat.T @ flat / 10000
        # Standard errors: 0.014 at most; sqrt(96) / 100 of the fourth moments.
        np.testing.assert_allclose(moment, np.eye(12), atol=0.07)
        np.testing.assert_allclose((flat**4).mean(0), kurtosis, atol=0.5)


@pytest.mark.parametrize(("number", "law"), [(1, "rademacher"), (2, "normal")])
def test_hutchinson_is_unbiased_with_the_known_variance(number, law, key):
    n = 20000
    x1 = jnp.broadcast_to(jnp.array([0.5, -1.0, 0.2]), (n, 3))
    probes = likelihood.draw_probes(key, x1, number, law=law)
    value, _ = solve(linear_field, x1, probes=probes, **GRID)
    x0 = expm(-A) @ np.asarray(x1[0])
    truth = norm.logpdf(x0).sum() - np.trace(A)
    square = ((A + A.T) / 2) ** 2
    if law == "rademacher":
        square = square - np.diag(np.diag(square))
    variance = 2 * square.sum() / number
    assert abs(value.mean() - truth) < 4 * math.sqrt(variance / n)
    # The fourth moment of the estimate is at most 15 times its variance squared.
    assert float(value.var()) == pytest.approx(variance, rel=4 * math.sqrt(14 / n))


def test_the_estimate_is_exact_with_probes_that_resolve_the_identity():
    x, t = points(4, 3), jnp.linspace(0, 1, 4)
    frame = jnp.broadcast_to(math.sqrt(3) * jnp.eye(3), (4, 3, 3))
    truth = fields.divergence(curved, x, t)
    for probes in (None, frame):
        v, value = fields.velocity_and_divergence(curved, x, t, None, probes)
        np.testing.assert_allclose(v, curved(x, t))
        np.testing.assert_allclose(value, truth, atol=1e-12)


def test_the_solver_does_not_matter_to_an_estimate(key):
    # With noise drawn anew at each evaluation no two solvers would agree.
    x1 = points(4, 3)
    probes = likelihood.draw_probes(key, x1, 2)
    steps = dataclasses.replace(BACK, rtol=1e-8, atol=1e-8)
    value, stats = solve(curved, x1, probes=probes, steps=steps)
    grid = {"solver": diffrax.Dopri8(), "steps": np.linspace(1, 0, 65)}
    other, _ = solve(curved, x1, probes=probes, **grid)
    np.testing.assert_allclose(value, other, atol=1e-6)
    assert stats.num_steps < 200


# Accuracy, cost and failure


def test_the_log_determinant_meets_the_tolerance_in_high_dimension():
    field = lambda x, t, _: 1e-2 * jnp.cos(30 * t)[:, None] * x  # noqa: E731
    x1 = jnp.zeros((1, 100))
    truth = likelihood.standard_normal(x1) - math.sin(30) / 30
    steps = dataclasses.replace(BACK, rtol=0.0, atol=1e-4)
    value, stats = solve(field, x1, steps=steps)
    np.testing.assert_allclose(value, truth, atol=5e-4)
    whole_row = dataclasses.replace(steps, error_norm=worst_row)
    _, joint = solve(field, x1, steps=whole_row)
    assert joint.num_steps < stats.num_steps


def test_a_hard_row_is_solved_as_well_among_easy_ones():
    rate = jnp.array([60.0] + [0.1] * 31)
    field = lambda x, t, rate: jnp.sin(rate * t)[:, None] * x**2 / 4  # noqa: E731
    x1 = jnp.full((32, 2), 0.5)
    alone, single = solve(field, x1[:1], cond=rate[:1])
    together, stats = solve(field, x1, cond=rate)
    assert stats.num_steps == single.num_steps
    np.testing.assert_allclose(together[:1], alone, rtol=1e-9)


def test_a_row_does_not_see_its_neighbours():
    x1 = points(5, 3)
    density = jax.jit(lambda x: likelihood.log_density(curved, x, **GRID))
    clean, _ = density(x1)
    value, stats = density(x1.at[2].set(jnp.nan))
    assert np.isnan(value[2])
    np.testing.assert_array_equal(np.delete(value, 2), np.delete(clean, 2))
    assert not stats.success
    np.testing.assert_allclose(density(x1[:1])[0], clean[:1], rtol=1e-14)
    jumps = jax.jit(partial(likelihood.few_step_log_density, average))
    np.testing.assert_allclose(jumps(x1[:1]), jumps(x1)[:1], rtol=1e-14)


@pytest.mark.parametrize(
    ("options", "number"), [({}, 3), (GRID, None)], ids=["adaptive", "grid"]
)
def test_nfe_counts_every_evaluation(options, number, key):
    calls = []

    def counted(x, t, cond=None):
        jax.debug.callback(lambda: calls.append(1))
        return curved(x, t)

    x1 = jnp.ones((2, 3))
    probes = None if number is None else likelihood.draw_probes(key, x1, number)
    _, stats = solve(counted, x1, probes=probes, **options)
    jax.effects_barrier()
    assert len(calls) == stats.nfe > 0


def late(value):
    """A field that is ``value`` below t=0.5, late in a solve back in time."""
    return lambda x, t, _: jnp.where(t[:, None] > 0.5, -x, value)


def kinked(x, t, _):
    """A finite field whose divergence is not."""
    return jnp.where(t[:, None] > 0.5, -x, jnp.sqrt(jnp.abs(x) * 0.0))


FAILURES = {
    "steps": (
        curved,
        {"steps": dataclasses.replace(TIGHT, max_steps=3)},
        "max_steps_reached",
    ),
    "nan": (late(jnp.nan), {}, "nonfinite"),
    "nan-grid": (late(jnp.nan), GRID, "nonfinite"),
    "divergence": (kinked, {}, "nonfinite"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failure_is_reported(case):
    field, options, reason = FAILURES[case]
    value, stats = solve(field, jnp.ones((1, 3)), **options)
    assert np.isnan(value).all()
    assert not stats.success
    assert stats.result == getattr(diffrax.RESULTS, reason)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_dtypes(dtype, key):
    expected = jnp.float64 if dtype == "float64" else jnp.float32

    def field(x, t, cond=None):
        assert (x.dtype, t.dtype, t.shape) == (expected, expected, (1,))
        return (-x).astype(jnp.bfloat16)

    def results(x1):
        probes = likelihood.draw_probes(key, x1)
        yield likelihood.log_density(field, x1)[0]
        yield likelihood.log_density(field, x1, probes=probes, **GRID)[0]
        u = lambda x, t, s, cond: field(x, t) / 2  # noqa: E731
        yield likelihood.few_step_log_density(u, x1)

    x1 = jnp.ones((1, 2, 2, 1), dtype)
    for value in jax.eval_shape(lambda x: list(results(x)), x1):
        assert (value.shape, value.dtype) == ((1,), expected)


# Gradients and training


def network(params, x, t, cond=None):
    """A small network in the style of ``module.apply``."""
    inputs = jnp.concatenate([x, t[:, None]], axis=1)
    hidden = jnp.tanh(inputs @ params["in"] + params["bias"][None])
    return hidden @ params["out"]


def init(size, width):
    rng = np.random.default_rng(3)
    shapes = {"in": (size + 1, width), "bias": (width,), "out": (width, size)}
    return {n: jnp.asarray(rng.normal(size=s)) / 2 for n, s in shapes.items()}


@pytest.mark.parametrize(
    ("adjoint", "forward", "steps", "exact"),
    [
        (None, False, dataclasses.replace(TIGHT, max_steps=64), True),
        (diffrax.DirectAdjoint(), False, np.linspace(1, 0, 5), False),
        (diffrax.ForwardMode(), True, dataclasses.replace(TIGHT, max_steps=64), True),
    ],
    ids=["default", "direct", "forward"],
)
def test_gradients_match_finite_differences(adjoint, forward, steps, exact, key):
    x1 = points(3, 2)
    probes = None if exact else likelihood.draw_probes(key, x1)
    options = {"adjoint": adjoint, "probes": probes, "steps": steps}

    def mean(inputs):
        params, x1 = inputs
        return likelihood.log_density(partial(network, params), x1, **options)[0].mean()

    inputs = (init(2, 5), x1)
    direction = jax.tree.map(jnp.cos, inputs)

    @jax.jit
    def value_and_slope(inputs):
        if forward:
            return jax.jvp(mean, (inputs,), (direction,))
        value, gradient = jax.value_and_grad(mean)(inputs)
        return value, optax.tree.vdot(gradient, direction)

    def along(h):
        return jax.tree.map(lambda a, b: a + h * b, inputs, direction)

    high, low = (value_and_slope(along(h))[0] for h in (1e-5, -1e-5))
    expected = float(high - low) / 2e-5
    assert abs(expected) > 0.1
    # The quotient has an error of 1e-10 h^-2 and of the tolerance 1e-9 / h at most.
    assert float(value_and_slope(inputs)[1]) == pytest.approx(expected, rel=1e-6)


def test_training_by_likelihood_reaches_the_entropy(key):
    law = MIXTURES["near_modes"]()
    marginal = analytic.log_density(law, LINEAR)
    # The quantiles of the law: their mean of any smooth function is its expectation.
    noise = jnp.asarray(norm.ppf((np.arange(200) + 0.5) / 200))[:, None]
    start, end = jnp.zeros(200), jnp.ones(200)
    x1 = analytic.flow_map(law, LINEAR)(noise, start, end)
    entropy = -float(marginal(x1, end).mean())
    optimizer = optax.sgd(0.1, momentum=0.9)

    def loss(params, key):
        probes = likelihood.draw_probes(key, x1)
        steps = dataclasses.replace(BACK, rtol=1e-4, atol=1e-4)
        v = partial(network, params)
        value, _ = likelihood.log_density(v, x1, probes=probes, steps=steps)
        return -value.mean()

    @jax.jit
    def step(carry, key):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, key)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), value

    carry = (params := init(1, 16), optimizer.init(params))
    values = []
    for k in jax.random.split(key, 150):
        carry, value = step(carry, k)
        values.append(float(value) - entropy)
    assert values[0] > 0.3
    assert -1e-3 < values[-1] < 0.01  # no density beats the law's own


# Jumps of a flow map


@pytest.mark.parametrize("grid", [(0.0, 0.3, 1.0), (0.9, 0.5, 0.1)])
def test_jumps_have_the_determinant_of_their_jacobian(grid):
    x0, cond = points(4, 3), jnp.linspace(0.5, 2.0, 4)

    def jump(x, cond):
        for t, s in pairwise(grid):
            times = (jnp.full(1, t), jnp.full(1, s))
            x = x + (s - t) * average(x[None], *times, cond[None])[0]
        return x

    x, volume = likelihood.few_step_log_det(average, x0, cond=cond, grid=grid)
    np.testing.assert_allclose(x, jax.vmap(jump)(x0, cond), rtol=1e-12)
    jacobian = jax.jit(jax.vmap(jax.jacrev(jump)))(x0, cond)
    expected = np.log(np.abs(np.linalg.det(jacobian)))
    np.testing.assert_allclose(volume, expected, atol=1e-12)


def test_perfect_jumps_have_the_density_of_the_data():
    law, x = problem("gaussian")
    u = analytic.average_velocity(law, LINEAR)
    marginal = analytic.log_density(law, LINEAR)
    value = likelihood.few_step_log_density(u, x, grid=(1.0, 0.4, 0.0))
    np.testing.assert_allclose(value, marginal(x, jnp.ones(1)), atol=1e-10)
    x1, volume = likelihood.few_step_log_det(u, x)
    value = likelihood.standard_normal(x) - volume
    np.testing.assert_allclose(value, marginal(x1, jnp.ones(1)), atol=1e-10)


def test_jumps_that_lose_a_dimension_have_no_volume():
    flat = lambda x, t, s, c: -x * jnp.array([[1.0, 0.0]])  # noqa: E731
    _, volume = likelihood.few_step_log_det(flat, jnp.ones((2, 2)))
    assert np.isneginf(volume).all()


# A learned end time


def test_end_time_derivative(key):
    x1, cond = points(4, 3), jnp.linspace(0.5, 1.0, 4)
    probes = likelihood.draw_probes(key, x1)
    source = lambda x: -jnp.log(jnp.cosh(x)).sum(1)  # noqa: E731
    shared = {"cond": cond, "source": source, "probes": probes}

    def value(end):
        """The flow from 1 to ``end`` on a clock that runs from 1 to 0."""

        def field(x, t, cond):
            return (1 - end) * curved(x, end + (1 - end) * t, cond)

        options = {"steps": TIGHT, "adjoint": diffrax.ForwardMode(), **shared}
        return likelihood.log_density(field, x1, **options)[0]

    end = 0.3
    expected = jax.jit(jax.jacfwd(value))(end)
    steps = dataclasses.replace(TIGHT, t1=end)
    x, _, _ = likelihood.ode_log_det(curved, x1, cond=cond, steps=steps)
    derivative = likelihood.end_time_derivative(curved, x, jnp.full(4, end), **shared)
    np.testing.assert_allclose(derivative, expected, atol=1e-6)


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": [0.0, 1.0]}, "runs back in time"),
        ({"steps": Adaptive()}, "runs back in time"),
        ({"steps": Adaptive(t0=0.2, t1=0.7)}, "runs back in time"),
        ({"steps": Adaptive(t0=0.0, t1=0.0)}, "must differ"),
        ({"solver": diffrax.Euler()}, "no error estimate"),
        ({"adjoint": diffrax.BacksolveAdjoint()}, "adjoint"),
        ({"cond": np.zeros(3)}, "leading axis"),
        ({"source": lambda x: -(x**2)}, r"must return shape \[batch\]"),
        ({"probes": np.ones((2, 3))}, "`probes` must have shape"),
        ({"probes": np.ones((1, 1, 3))}, "`probes` must have shape"),
        ({"probes": np.ones((2, 0, 3))}, "`probes` must hold one per row"),
        ({"probes": np.ones((2, 1, 3), np.float32)}, "dtype of the state"),
        ({"probes": np.ones((2, 1, 3), int)}, "floating"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_bad_options(options, message):
    if "probes" in options:
        options = {"probes": jnp.asarray(options["probes"])}
    with pytest.raises(ValueError, match=message):
        likelihood.log_density(linear_field, jnp.ones((2, 3)), **options)


@pytest.mark.usefixtures("untyped")
def test_bad_arguments(key):
    x = jnp.ones((2, 3))
    density, jumps = likelihood.log_density, likelihood.few_step_log_density
    end = likelihood.end_time_derivative
    short = lambda x, t, c: -x[:, :1]  # noqa: E731
    for broken, message in [
        (partial(density, curved, x[0]), "`x1` must have shape"),
        (partial(density, curved, x.astype(int)), "floating dtype"),
        (partial(density, short, x), "`field` must return shape"),
        (partial(jumps, average, x, grid=(0.0, 1.0)), "runs back in time"),
        (partial(jumps, average, x, source=jnp.abs), r"must return shape \[batch\]"),
        (partial(likelihood.draw_probes, key, x, 0), "`number` must be at least 1"),
        (partial(likelihood.draw_probes, key, x, law="sphere"), "`law` must be"),
        (partial(end, curved, x, jnp.ones((2, 1))), "`t` must have shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            broken()


# Bits per dimension of a run


@pytest.mark.slow
def test_a_run_gets_its_bits_per_dimension(tmp_path):
    folder = tmp_path / "run"
    code, output = call("train", "--smoke", "--run", folder, cwd=tmp_path)
    assert code == 0, output
    flags = ["--examples", "5", "--batch-size", "3", "--tolerance", "1e-2"]
    flags += ["--importance", "2", "--repeats", "2"]
    code, output = call("likelihood", folder, *flags, cwd=tmp_path)
    assert code == 0, output
    result = json.loads((folder / "likelihood.json").read_text())
    assert f"at most {result['bits_per_dimension']:.4f} bits" in output
    assert 0 < result["bits_per_dimension"] < 20
    assert (result["examples"], result["step"]) == (5, 8)
    assert result["options"]["importance"] == 2
    for refused in (["--importance", "2", "--probes", "1"], ["--examples", "1"]):
        code, output = call("likelihood", folder, *refused, cwd=tmp_path)
        assert code != 0
        assert "Traceback" not in output
