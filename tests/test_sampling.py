"""Samplers against flows known in closed form."""

import dataclasses
import inspect
import math

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from flowjax import likelihood, sampling
from flowjax.sampling import Adaptive
from flowjax.sampling.steps import solver_cost
from tests.counting import Counter

pytestmark = pytest.mark.usefixtures("x64")

WEIGHTS, MEANS, DEVIATIONS = (
    np.array(a) for a in ([0.3, 0.7], [-1.2, 0.8], [0.4, 0.6])
)
POINTS = np.linspace(-1.5, 1.5, 7)[:, None]
HALF = diffrax.HalfSolver

# solver, order, steps of the coarse grid
FIXED = [
    (diffrax.Euler(), 1, 100),
    (diffrax.Heun(), 2, 32),
    (diffrax.Midpoint(), 2, 32),
    (diffrax.Ralston(), 2, 32),
    (diffrax.LeapfrogMidpoint(), 2, 32),
    (diffrax.ReversibleHeun(), 2, 32),
    (diffrax.Bosh3(), 3, 32),
    (diffrax.Tsit5(), 5, 12),
    (diffrax.Dopri5(), 5, 12),
    (diffrax.Dopri8(), 8, 8),
    (HALF(diffrax.Euler()), 1, 100),
]
ADAPTIVE = [
    diffrax.Heun(),
    diffrax.Tsit5(),
    diffrax.ReversibleHeun(),
    HALF(diffrax.Euler()),
    HALF(HALF(diffrax.Bosh3())),
]


def name(value):
    inner = getattr(value, "solver", None) if isinstance(value, HALF) else None
    return f"Half{name(inner)}" if inner is not None else type(value).__name__


def mixture_velocity(x, t, cond=None):
    """The velocity of a 1-D Gaussian mixture on the linear path."""
    t = t[:, None]
    variance = (t * DEVIATIONS[None]) ** 2 + (1 - t) ** 2
    r = x - t * MEANS[None]
    logits = jnp.log(WEIGHTS)[None] - r**2 / (2 * variance) - jnp.log(variance) / 2
    v = MEANS[None] + (t * DEVIATIONS[None] ** 2 - (1 - t)) / variance * r
    return (jax.nn.softmax(logits, axis=-1) * v).sum(-1, keepdims=True)


def mixture_map(x, t, s):
    """Its flow map: in one dimension flows are monotone, so CDFs are matched."""

    def cdf(y, time):
        scale = np.sqrt((time * DEVIATIONS) ** 2 + (1 - time) ** 2)
        return (WEIGHTS * norm.cdf((y - time * MEANS) / scale)).sum()

    def one(y):
        return brentq(lambda z: cdf(z, s) - cdf(y, t), -9, 9, xtol=1e-15, rtol=1e-15)

    return np.array([[one(y)] for y in np.asarray(x)[:, 0]])


def decay(x, t, rate):
    """dx/dt = rate (cos 6t - x), hard where the rate is large."""
    return rate[:, None] * (jnp.cos(6 * t)[:, None] - x)


def decay_at(x0, rate, t):
    """The solution of `decay`."""
    a, w = rate[:, None], 6
    steady = (a * a * math.cos(w * t) + a * w * math.sin(w * t)) / (a * a + w * w)
    return steady + (x0 - a * a / (a * a + w * w)) * np.exp(-a * t)


def solve(field, x0, **options):
    return jax.jit(lambda x: sampling.ode(field, x, **options))(x0)


@pytest.mark.parametrize(("solver", "order", "n"), FIXED, ids=name)
def test_fixed_grid_converges_at_its_order_and_counts_evaluations(solver, order, n):
    field, errors = Counter(mixture_velocity), []
    for steps in (n, 2 * n):
        grid = np.linspace(0.02, 0.98, steps + 1)
        x, stats = solve(field, jnp.asarray(POINTS), solver=solver, steps=grid)
        assert field.reset() == stats.nfe
        assert (stats.num_steps, stats.num_rejected) == (steps, 0)
        assert stats.success
        assert stats.result == diffrax.RESULTS.successful
        errors.append(np.sqrt(np.mean((x - mixture_map(POINTS, 0.02, 0.98)) ** 2)))
    slope = math.log2(errors[0] / errors[1])
    assert slope > order - 0.1
    # Above third order these grids are still before the asymptotic regime.
    assert order > 3 or slope < order + 0.1


@pytest.mark.parametrize("solver", ADAPTIVE, ids=name)
def test_adaptive_steps_count_evaluations(solver):
    field = Counter(decay)
    x0, rate = jnp.full((2, 3), 2.0), jnp.array([1.0, 10.0])
    # The first step is far too long: it is rejected before any slope can be reused.
    steps = Adaptive(first_step=1.0, rtol=1e-3, atol=1e-3)
    _, stats = solve(field, x0, cond=rate, solver=solver, steps=steps)
    assert stats.num_rejected > 1
    assert field.reset() == stats.nfe


def test_cost_of_the_usual_solvers():
    expected = {
        diffrax.Euler: (0, 1, 0),
        diffrax.LeapfrogMidpoint: (0, 1, 0),
        diffrax.ReversibleHeun: (1, 1, 0),
        diffrax.Heun: (0, 2, 0),
        diffrax.Midpoint: (0, 2, 0),
        diffrax.Ralston: (0, 2, 0),
        diffrax.Bosh3: (0, 3, 1),
        diffrax.Tsit5: (0, 6, 1),
        diffrax.Dopri5: (0, 6, 1),
        diffrax.Dopri8: (0, 13, 1),
    }
    for kind, cost in expected.items():
        assert solver_cost(kind()) == cost
    assert solver_cost(HALF(diffrax.Tsit5())) == (0, 18, 2)


@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (0.9, 0.2)])
def test_adaptive_steps_reach_the_closed_form(t0, t1):
    steps = Adaptive(t0=t0, t1=t1, rtol=1e-8, atol=1e-8)
    x, stats = solve(mixture_velocity, jnp.asarray(POINTS), steps=steps)
    np.testing.assert_allclose(x, mixture_map(POINTS, t0, t1), atol=1e-6, rtol=0)
    assert stats.success


def test_round_trip():
    steps = Adaptive(rtol=1e-9, atol=1e-9)
    there, _ = solve(mixture_velocity, jnp.asarray(POINTS), steps=steps)
    backwards = dataclasses.replace(steps, t0=1.0, t1=0.0)
    back, _ = solve(mixture_velocity, there, steps=backwards)
    np.testing.assert_allclose(back, POINTS, atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"steps": Adaptive(1e-8, 1e-8, t0=1.0, t1=0.0, max_steps=256)}, 1e-6),
        ({"steps": np.linspace(0, 1, 65), "solver": diffrax.Heun()}, 1e-3),
        ({"steps": np.linspace(1, 0, 65), "solver": diffrax.Euler()}, 5e-2),
    ],
    ids=["adaptive", "grid", "grid-backward"],
)
def test_dense_and_listed_times_agree_with_the_end(options, tolerance):
    steps = options["steps"]
    ends = [steps.t0, steps.t1] if isinstance(steps, Adaptive) else steps
    start, end = ends[0], ends[-1]
    times = np.array([start, 0.6 * start + 0.4 * end, 0.33 * start + 0.67 * end, end])
    x0 = jnp.asarray(POINTS)
    states, stats = jax.jit(
        lambda x: sampling.ode_at(mixture_velocity, x, times, **options)
    )(x0)
    path, path_stats = jax.jit(
        lambda x: sampling.ode_dense(mixture_velocity, x, **options)
    )(x0)
    last, last_stats = solve(mixture_velocity, x0, **options)

    assert states.shape == (4, *POINTS.shape)
    assert stats[:4] == path_stats[:4] == last_stats[:4]
    np.testing.assert_allclose(states[0], x0, atol=1e-14)
    np.testing.assert_allclose(states[-1], last, atol=1e-14)
    for time, state in zip(times, states, strict=True):
        np.testing.assert_allclose(path(time), state, atol=1e-13)
        truth = mixture_map(POINTS, start, time)
        np.testing.assert_allclose(state, truth, atol=tolerance, rtol=0)
    assert np.isnan(path(1.5)).all()


def test_a_hard_row_is_solved_as_well_among_easy_ones():
    rate = np.array([200.0] + [0.5] * 63)
    x0 = np.full((64, 1), 1.0)
    truth = decay_at(x0, rate, 1.0)

    def hard_error(rows, error_norm=None):
        x, stats = solve(
            decay,
            jnp.asarray(x0[:rows]),
            cond=jnp.asarray(rate[:rows]),
            steps=Adaptive(rtol=1e-4, atol=1e-4, error_norm=error_norm),
        )
        return abs(float(x[0, 0]) - truth[0, 0]), stats.num_steps

    alone, steps_alone = hard_error(1)
    together, steps = hard_error(64)
    assert steps == steps_alone
    assert together == pytest.approx(alone, rel=1e-6)
    whole_batch = lambda e: jnp.sqrt(jnp.mean(e**2))  # noqa: E731
    assert hard_error(64, error_norm=whole_batch)[1] < steps


def test_a_row_on_a_grid_does_not_see_its_neighbours():
    run = jax.jit(
        lambda x: sampling.ode(mixture_velocity, x, steps=np.linspace(0, 1, 9))
    )
    clean, _ = run(jnp.asarray(POINTS))
    x, stats = run(jnp.asarray(POINTS).at[2].set(jnp.nan))
    assert np.isnan(x[2]).all()
    np.testing.assert_array_equal(np.delete(x, 2, 0), np.delete(clean, 2, 0))
    assert not stats.success
    assert stats.result == diffrax.RESULTS.nonfinite


# What one row of a batch can come to, each a factor of dx/dt in that row.
LOST = {
    "from the start": lambda x, t: jnp.nan,
    "on the way": lambda x, t: jnp.where(t < 0.5, -1.0, jnp.nan),
    "infinite": lambda x, t: jnp.where(t < 0.5, -1.0, jnp.inf),
    "blow-up": lambda x, t: 2 * x,
}


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("case", LOST)
def test_a_row_that_fails_leaves_the_others_as_they_are(case, backward):
    """Adaptive steps go on without it; the others meet the tolerance."""

    def field(x, t, cond=None):
        t = 1 - t if backward else t
        factor = jnp.where(cond, LOST[case](x, t[:, None]), jnp.cos(9 * t)[:, None])
        return (1 - 2 * backward) * factor * x

    x0, cond = jnp.linspace(1.0, 2.0, 4)[:, None], jnp.arange(4)[:, None] == 1
    ends = {"t0": 1.0, "t1": 0.0} if backward else {}
    steps = Adaptive(rtol=1e-6, atol=1e-6, **ends)
    x, stats = solve(field, x0, cond=cond, steps=steps)
    np.testing.assert_array_equal(np.isnan(x[:, 0]), cond[:, 0])
    kept = np.asarray(~cond[:, 0])
    np.testing.assert_allclose(x[kept], x0[kept] * np.exp(np.sin(9) / 9), rtol=1e-5)
    assert not stats.success
    assert stats.result == diffrax.RESULTS.nonfinite
    assert stats.num_steps < 500

    states, _ = sampling.ode_at(
        field, x0, [0.9, 0.1] if backward else [0.1, 0.9], cond=cond, steps=steps
    )
    np.testing.assert_array_equal(np.isnan(states[:, :, 0]), [cond[:, 0]] * 2)


def late(value):
    """A field that is ``value`` from t=0.5 on."""
    return lambda x, t, _: jnp.where(t[:, None] < 0.5, -x, value)


GRID = {"steps": np.linspace(0, 1, 11)}
FAILURES = {
    "steps": (
        lambda x, t, c: 9 * jnp.cos(40 * t)[:, None] * x,
        {"steps": Adaptive(max_steps=3)},
    ),
    "nan": (late(jnp.nan), {}),
    "nan-backward": (late(jnp.nan), {"steps": Adaptive(t0=1.0, t1=0.0)}),
    "inf": (late(jnp.inf), {}),
    "blow-up": (lambda x, t, c: 2 * x**2, {"steps": Adaptive(rtol=1e-2)}),
    "nan-grid": (late(jnp.nan), GRID),
    "inf-grid": (late(jnp.inf), GRID),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failure_is_reported(case):
    field, options = FAILURES[case]
    x0 = jnp.ones((2, 3))
    x, stats = solve(field, x0, solver=diffrax.Heun(), **options)
    assert np.isnan(x).all()
    assert not stats.success
    reached = diffrax.RESULTS.max_steps_reached
    assert stats.result == (reached if case == "steps" else diffrax.RESULTS.nonfinite)
    # Hopeless steps are given up long before the default `max_steps` of 4096.
    assert stats.num_steps < 1000


@pytest.mark.parametrize("case", ["steps", "nan-grid"])
def test_failure_is_reported_on_the_way(case):
    field, options = FAILURES[case]
    options = {"solver": diffrax.Heun()} | options
    x0 = jnp.ones((2, 3))
    states, stats = sampling.ode_at(field, x0, [0.1, 0.9], **options)
    assert np.isnan(states).all()
    assert not stats.success
    path, stats = sampling.ode_dense(field, x0, **options)
    assert np.isnan(path(0.1)).all()
    assert not stats.success


@pytest.mark.parametrize(
    "steps", [Adaptive(), np.linspace(0, 1, 4)], ids=["adaptive", "grid"]
)
@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        ("bfloat16", False),
        ("float16", False),
        ("float32", False),
        ("float32", True),
        ("float64", True),
    ],
)
def test_dtypes(dtype, steps, wide):
    expected = "float64" if dtype == "float64" else "float32"

    def field(x, t, cond):
        assert (x.dtype, t.dtype, t.shape) == (expected, expected, (1,))
        return (-x).astype(jnp.bfloat16)

    def average(x, t, s, cond):
        assert (s.dtype, s.shape) == (expected, (1,))
        return field(x, t, cond)

    def check(x):
        assert (x.dtype, x.shape) == (expected, (1, 2, 2, 1))

    with jax.enable_x64(wide):
        x0 = jnp.ones((1, 2, 2, 1), dtype)
        check(jax.eval_shape(lambda x: sampling.ode(field, x, steps=steps)[0], x0))
        check(jax.eval_shape(lambda x: sampling.few_step(average, x), x0))
        if dtype == "bfloat16":
            x, stats = solve(field, x0, steps=steps)
            check(x)
            assert stats.success


def test_eager_and_compiled_and_sharded_agree():
    x0, rate = jnp.asarray(np.linspace(-1, 1, 16)[:, None]), jnp.linspace(0.5, 9, 16)

    def sample(x, rate):
        steps = Adaptive(rtol=1e-3)
        return sampling.ode(decay, x, cond=rate, steps=steps, solver=diffrax.Heun())

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    results = [
        sample(x0, rate),
        jax.jit(sample)(x0, rate),
        jax.jit(sample)(*jax.device_put((x0, rate), rows)),
    ]
    assert results[2][0].sharding.is_equivalent_to(rows, 2)
    for x, stats in results:
        np.testing.assert_allclose(x, results[0][0], rtol=1e-12)
        assert stats.nfe == results[0][1].nfe


@pytest.mark.parametrize("options", [{}, GRID], ids=["adaptive", "grid"])
def test_gradient_of_bound_parameters(options):
    x0 = jnp.array([[1.0], [2.0]])

    def total(a, adjoint=None):
        options_ = options | {"solver": diffrax.Bosh3(), "adjoint": adjoint}
        return sampling.ode(lambda x, t, c: a * x, x0, **options_)[0].sum()

    a, tolerance = 0.7, 1e-4
    expected = pytest.approx(3 * math.exp(a), rel=tolerance)
    value_and_gradient = jax.jit(jax.value_and_grad(total))
    assert [float(y) for y in value_and_gradient(a)] == [expected, expected]
    # The error estimate of a field at rest is zero, where a norm has no derivative.
    assert [float(y) for y in value_and_gradient(0.0)] == pytest.approx([3, 3])
    forward = jax.jit(jax.jacfwd(lambda a: total(a, diffrax.ForwardMode())))
    assert float(forward(a)) == expected
    assert float(forward(0.0)) == pytest.approx(3)


@pytest.mark.parametrize("options", [{}, GRID], ids=["adaptive", "grid"])
def test_programs_have_no_host_callback(options):
    program = jax.jit(lambda x: sampling.ode(lambda x, t, c: -x, x, **options)[0])
    assert "callback" not in program.lower(jnp.ones((2, 1))).as_text()


def test_all_samplers_have_the_same_options_and_defaults():
    samplers = (
        sampling.ode,
        sampling.ode_at,
        sampling.ode_dense,
        likelihood.ode_log_det,
    )
    documented, *others = (inspect.signature(f).parameters for f in samplers)
    for option in ("cond", "steps", "solver", "adjoint"):
        for parameters in others:
            assert parameters[option].default == documented[option].default
    density = inspect.signature(likelihood.log_density).parameters["steps"].default
    assert density == dataclasses.replace(documented["steps"].default, t0=1.0, t1=0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": [0.0, 0.7, 0.5]}, "`steps` must be strictly monotone"),
        ({"steps": [0.0]}, "at least two"),
        ({"steps": Adaptive(t0=0.3, t1=0.3)}, "must differ"),
        ({"steps": Adaptive(t1=1.1)}, r"lie in \[0, 1\]"),
        ({"steps": Adaptive(t0=math.nan)}, r"lie in \[0, 1\]"),
        ({"solver": diffrax.Euler()}, "no error estimate"),
        ({"solver": diffrax.LeapfrogMidpoint()}, "no error estimate"),
        ({"solver": diffrax.Kvaerno5()}, "explicit"),
        ({"solver": diffrax.ImplicitEuler()}, "explicit"),
        ({"solver": HALF(diffrax.ImplicitEuler())}, "explicit"),
        ({"solver": diffrax.SemiImplicitEuler()}, "explicit"),
        ({"solver": diffrax.EulerHeun(), "steps": [0.0, 1.0]}, "explicit"),
        ({"steps": Adaptive(rtol=0.0, atol=0.0)}, "not both 0"),
        ({"steps": Adaptive(rtol=-1.0)}, ">= 0"),
        ({"steps": Adaptive(first_step=0.0)}, "first_step"),
        ({"steps": Adaptive(max_steps=0)}, "max_steps"),
        ({"adjoint": diffrax.BacksolveAdjoint()}, "adjoint"),
        ({"cond": np.zeros(3)}, "leading axis"),
    ],
)
def test_bad_options(options, message):
    for sampler in (sampling.ode, sampling.ode_dense):
        with pytest.raises(ValueError, match=message):
            sampler(lambda x, t, c: -x, jnp.ones((2, 1)), **options)


@pytest.mark.parametrize(
    "times", [[], [[0.5]], [0.5, 0.5], [0.5, 0.2], [0.1, 1.1], [math.nan], [-0.1, 0.5]]
)
@pytest.mark.usefixtures("untyped")
def test_bad_times(times):
    with pytest.raises(ValueError, match=r"`times(\[0\])?` must be"):
        sampling.ode_at(lambda x, t, c: -x, jnp.ones((2, 1)), times)
    with pytest.raises(ValueError, match="`times` must be"):
        sampling.ode_at(lambda x, t, c: -x, jnp.ones((2, 1)), [0.2, 0.5], steps=[1, 0])


@pytest.mark.usefixtures("untyped")
def test_bad_states_and_fields():
    for x0 in (jnp.ones(3), jnp.ones((3, 1), jnp.int32)):
        with pytest.raises(ValueError, match="`x0` must have"):
            sampling.ode(lambda x, t, c: -x, x0)
        with pytest.raises(ValueError, match="`x0` must have"):
            sampling.few_step(lambda x, t, s, c: -x, x0)
    x0 = jnp.ones((3, 2))
    with pytest.raises(ValueError, match=r"`field` must return shape .*=\(3, 2\)"):
        sampling.ode(lambda x, t, c: -x[:, :1], x0)
    with pytest.raises(ValueError, match=r"`u` must return shape .*=\(3, 2\)"):
        sampling.few_step(lambda x, t, s, c: -x[:, :1], x0)
    with pytest.raises(ValueError, match="coincide in float32"):
        sampling.few_step(
            lambda x, t, s, c: -x, x0.astype(jnp.float32), grid=[0.5, 0.5 + 1e-9]
        )


def gaussian_map(x, t, s, mean, deviation):
    """The flow map of N(mean, deviation^2) data."""
    scale = lambda r: jnp.sqrt((r * deviation) ** 2 + (1 - r) ** 2)  # noqa: E731
    return s * mean + scale(s) / scale(t) * (x - t * mean)


def gaussian_average_velocity(x, t, s, mean):
    t, s, mean = (a[:, None] for a in (t, s, mean))
    return (gaussian_map(x, t, s, mean, 0.4) - x) / (s - t)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_few_step_is_exact_on_every_grid_and_inverts(n, key):
    x0 = jax.random.normal(key, (5, 3), jnp.float64)
    mean = jnp.linspace(-1, 1, 5)
    counter = Counter(lambda x, times, mean: gaussian_average_velocity(x, *times, mean))
    u = lambda x, t, s, mean: counter(x, (t, s), mean)  # noqa: E731
    grid = (np.arange(n + 1) / n) ** 2
    x1 = jax.jit(lambda x: sampling.few_step(u, x, cond=mean, grid=grid))(x0)
    assert counter.reset() == n
    truth = gaussian_map(x0, 0.0, 1.0, mean[:, None], 0.4)
    np.testing.assert_allclose(x1, truth, atol=1e-14)
    back = sampling.few_step(u, x1, cond=mean, grid=grid[::-1])
    np.testing.assert_allclose(back, x0, atol=1e-14)


def test_few_step_defaults_to_one_step(key):
    x0 = jax.random.normal(key, (5, 3), jnp.float64)
    u = lambda x, t, s, _: jnp.sin(x) + (t + 2 * s)[:, None]  # noqa: E731
    expected = x0 + jnp.sin(x0) + 2
    np.testing.assert_allclose(sampling.few_step(u, x0), expected, rtol=1e-15)
