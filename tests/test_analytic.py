import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import log_ndtr, logsumexp, ndtr, ndtri

from flowjax import analytic, interpolants
from flowjax.analytic.flow_maps import _quadrature_length
from flowjax.interpolants import sample_path
from tests.tables import ALL_INTERPOLANTS, MIXTURES

# The velocity of the power 1.5 has no derivative at t=0, where these laws look too.
INTERPOLANTS = {
    name: make
    for name, make in ALL_INTERPOLANTS.items()
    if name not in ("polynomial", "half_the_noise")
}
EXACT_ENDS = [
    n for n in INTERPOLANTS if n not in ("minimum_noise", "variance_preserving")
]

each_with_map = pytest.mark.parametrize("mixture", ["gaussian_plane", "three_modes"])
# Compilation takes the time: the default run crosses only these with every mixture.
QUICK = ("linear", "variance_preserving", "bridge")
each = pytest.mark.parametrize(
    ("mixture", "interpolant"),
    [("two_modes_plane", i) for i in INTERPOLANTS]
    + [
        pytest.param(m, i, marks=() if i in QUICK else pytest.mark.slow)
        for m in ("gaussian_plane", "three_modes")
        for i in INTERPOLANTS
    ],
)
each_map = pytest.mark.parametrize(
    ("mixture", "interpolant"),
    [("gaussian_plane", i) for i in INTERPOLANTS]
    + [
        pytest.param("three_modes", i, marks=() if i in QUICK else pytest.mark.slow)
        for i in INTERPOLANTS
    ],
)
each_interpolant = pytest.mark.parametrize("interpolant", INTERPOLANTS)
pytestmark = pytest.mark.usefixtures("x64")


def bc(t, x):
    return jnp.reshape(t, t.shape + (1,) * (x.ndim - 1))


def close(got, expected, tolerance=1e-10):
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def time_derivative(f, t):
    return jax.jvp(f, (t,), (jnp.ones_like(t),))[1]


@functools.cache
def marginal_laws(mixture, interpolant):
    """Evaluate every field of a case once, at both endpoints and between."""
    law, path = MIXTURES[mixture](), INTERPOLANTS[interpolant]()
    t = jnp.repeat(jnp.array([0.0, 0.003, 0.2, 0.5, 0.8, 0.97, 1.0]), 6)
    event = law.means.shape[1:]
    x = 1.5 * jax.random.normal(jax.random.key(1), (len(t), *event))

    @jax.jit
    def evaluate(x, t):
        v, score = analytic.velocity(law, path), analytic.score(law, path)
        log_p = analytic.log_density(law, path)

        def divergence(x, t):
            jacobian = jax.jacfwd(lambda x: v(x[None], t[None])[0].ravel())(x)
            return jnp.trace(jacobian.reshape(x.size, x.size))

        return {
            "x": x,
            "t": t,
            "v": v(x, t),
            "score": score(x, t),
            "x1": analytic.posterior_mean(law, path)(x, t),
            "log_p": log_p(x, t),
            "log_p rate": time_derivative(lambda t: log_p(x, t), t),
            "log_p gradient": jax.grad(lambda x: log_p(x, t).sum())(x),
            "divergence": jax.vmap(divergence)(x, t),
        }

    return evaluate(x, t)


@each
def test_fields_are_finite_at_both_ends(mixture, interpolant):
    for name, value in marginal_laws(mixture, interpolant).items():
        assert np.isfinite(value).all(), name


@each
def test_continuity_equation(mixture, interpolant):
    f = marginal_laws(mixture, interpolant)
    transport = (f["v"] * f["score"]).reshape(len(f["t"]), -1).sum(axis=1)
    scale = 1 + np.abs(transport) + np.abs(f["divergence"])
    close((f["log_p rate"] + f["divergence"] + transport) / scale, 0, 1e-13)


@each
def test_score_is_the_gradient_of_the_log_density(mixture, interpolant):
    f = marginal_laws(mixture, interpolant)
    close(f["score"], f["log_p gradient"], 1e-12)


@pytest.mark.parametrize("t", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("mixture", ["three_modes", "two_modes_plane"])
def test_density_integrates_to_one(mixture, t):
    law = MIXTURES[mixture]()
    size = law.means.shape[-1]
    # The trapezoidal rule is exact to rounding for a density that vanishes at the ends.
    step = 0.02 if size == 1 else 0.08
    axis = np.arange(-8.0, 8.0, step)
    x = np.stack(np.meshgrid(*[axis] * size), axis=-1).reshape(-1, size)
    log_p = jax.jit(analytic.log_density(law, interpolants.linear()))
    total = np.exp(log_p(jnp.asarray(x), jnp.full(len(x), t))).sum() * step**size
    close(total, 1.0, 1e-12)


@each
def test_velocity_is_the_mean_of_the_parts(mixture, interpolant):
    f = marginal_laws(mixture, interpolant)
    inside = (f["t"] > 0) & (f["t"] < 1)
    x, t, v, score, x1 = (f[n][inside] for n in ("x", "t", "v", "score", "x1"))
    c = interpolants.coefficients(INTERPOLANTS[interpolant](), t)
    # Gaussian noise of scale sigma has the posterior mean -sigma * score.
    x0, z = -bc(c.sigma, x) * score, -bc(c.gamma, x) * score
    close(x, bc(c.alpha, x) * x1 + bc(c.sigma, x) * x0 + bc(c.gamma, x) * z)
    rates = (bc(rate, x) for rate in (c.d_alpha, c.d_sigma, c.d_gamma))
    close(v, sum(r * part for r, part in zip(rates, (x1, x0, z), strict=True)))


def gauss_hermite(nodes):
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    return points, weights / weights.sum()


@each_interpolant
def test_fields_are_projections_of_the_sampled_path(interpolant):
    # E[(v_t - v(x_t, t)) phi(x_t)] = 0 for every phi, by quadrature over (x0, x1, z).
    law, path = MIXTURES["three_modes"](), INTERPOLANTS[interpolant]()
    n, w = gauss_hermite(48)
    latent = path.gamma is not None
    nz, wz = gauss_hermite(48) if latent else (np.zeros(1), np.ones(1))
    k, a, b, c = (i.ravel() for i in np.indices((3, len(n), len(n), len(nz))))
    prob = np.asarray(law.weights)[k] * w[a] * w[b] * wz[c]
    x1 = law.means[k] + law.stds[k] * n[a][:, None]
    x0, z = jnp.asarray(n[b][:, None]), jnp.asarray(nz[c][:, None])
    batch = sample_path(path, x0, x1, jnp.full(len(k), 0.4), z=z if latent else None)
    x, time = batch.x, batch.t
    residuals = {
        "velocity": batch.v - jax.jit(analytic.velocity(law, path))(x, time),
        "x1": x1 - jax.jit(analytic.posterior_mean(law, path))(x, time),
    }
    for name, residual in residuals.items():
        for test in (jnp.ones_like, jnp.asarray, jnp.sin):
            mean = (prob * (residual * test(x))[:, 0]).sum()
            assert abs(mean) < 1e-6 * np.abs(residual).max(), name


def along(f, rows):
    """Evaluate f and its directional derivative on many lists of rows in one call.

    Each list is (x, t, s) with, optionally, its tangent. Returns a list of pairs.
    """
    full = [[*row, *map(jnp.zeros_like, row)] if len(row) == 3 else row for row in rows]
    x, t, s, *tangent = (jnp.concatenate(parts) for parts in zip(*full, strict=True))
    value, rate = jax.jvp(f, (x, t, s), tuple(tangent))
    split = functools.partial(jnp.split, indices_or_sections=len(rows))
    return list(zip(split(value), split(rate), strict=True))


@functools.cache
def map_laws(mixture, interpolant):
    """Evaluate the map and the average velocity of a case between many times."""
    law, path = MIXTURES[mixture](), INTERPOLANTS[interpolant]()
    times = [0.0, 1e-7, 0.3, 0.3 + 1e-9, 0.3 + 1e-4, 0.302, 0.305, 0.7, 1 - 1e-6, 1.0]
    t, s = (jnp.asarray(a.ravel()) for a in np.meshgrid(times, times))
    x0 = jax.random.normal(jax.random.key(2), (len(t), *law.means.shape[1:]))

    @jax.jit
    def evaluate(x0, t, s):
        field = analytic.velocity(law, path)
        X, u = analytic.flow_map(law, path), analytic.average_velocity(law, path)
        x = X(x0, jnp.zeros_like(t), t)
        v, m = field(x, t), 0.4 * t + 0.6 * s
        one, zero = jnp.ones_like(t), jnp.zeros_like(t)
        flow, destination = (v, one, zero), (jnp.zeros_like(x), zero, one)
        f = dict(t=t, s=s, m=m, x=x, v=v)
        (_, f["X along"]), (y, f["X rate"]), (middle, _), (f["X still"], _) = along(
            X, [(x, t, s, *flow), (x, t, s, *destination), (x, t, m), (x, t, t)]
        )
        f |= {"y": y, "v end": field(y, s), "X via m": X(middle, m, s)}
        rows = [(x, t, s, *flow), (x, t, s, *destination)]
        rows += [(y, s, t), (x, t, m), (middle, m, s), (x, t, t)]
        (f["u"], f["u along"]), (_, f["u rate"]), *others = along(u, rows)
        names = ("u back", "u to m", "u from m", "u still")
        return f | {n: value for n, (value, _) in zip(names, others, strict=True)}

    return evaluate(x0, t, s)


def scaled(f, residual):
    """Divide a residual by the size of the velocities it is made of."""
    return residual / (1 + jnp.abs(f["v"]) + jnp.abs(f["v end"]))


@each_map
def test_flow_map_solves_the_equation(mixture, interpolant):
    f = map_laws(mixture, interpolant)
    for name, value in f.items():
        assert np.isfinite(value).all(), name
    close(scaled(f, f["X rate"] - f["v end"]), 0, 1e-12)
    close(scaled(f, f["X along"]), 0, 1e-12)


@each_map
def test_flow_map_is_a_semigroup(mixture, interpolant):
    f = map_laws(mixture, interpolant)
    close(f["X via m"], f["y"], 1e-12)
    close(f["X still"], f["x"], 1e-15)


@each_map
def test_average_velocity_identities(mixture, interpolant):
    f = map_laws(mixture, interpolant)
    gap = bc(f["s"] - f["t"], f["x"])
    first, second = bc(f["m"] - f["t"], f["x"]), bc(f["s"] - f["m"], f["x"])
    residuals = {
        "boundary": f["u still"] - f["v"],
        "flow map": f["x"] + gap * f["u"] - f["y"],
        "Eulerian": f["u"] - f["v"] - gap * f["u along"],
        "Lagrangian": f["u"] + gap * f["u rate"] - f["v end"],
        "semigroup": gap * f["u"] - first * f["u to m"] - second * f["u from m"],
        "direction": f["u"] - f["u back"],
    }
    for name, residual in residuals.items():
        assert np.abs(scaled(f, residual)).max() < 1e-11, name


@each_with_map
@pytest.mark.parametrize("interpolant", ["variance_preserving"])
def test_average_velocity_has_no_step_between_its_two_formulas(mixture, interpolant):
    law, path = MIXTURES[mixture](), INTERPOLANTS[interpolant]()
    u = jax.jit(analytic.average_velocity(law, path))
    threshold = _quadrature_length(jnp.dtype("float64"))
    t = jnp.array([0.0, 0.3, 0.6, 0.99])
    s = t + threshold
    x = jax.random.normal(jax.random.key(3), (4, *law.means.shape[1:]))
    below, above = (u(x, t, s + d) for d in (-1e-12, 1e-12))
    close(below, above, 3e-11)


@each_with_map
@pytest.mark.parametrize("interpolant", ["linear", "variance_preserving"])
def test_average_velocity_agrees_with_a_solver(mixture, interpolant):
    law, path = MIXTURES[mixture](), INTERPOLANTS[interpolant]()
    v, u = analytic.velocity(law, path), analytic.average_velocity(law, path)
    t = jnp.array([0.0, 0.0, 0.4, 0.7, 0.9, 1.0])
    s = jnp.array([1.0, 0.5, 0.401, 0.2, 1.0, 0.3])
    x = jax.random.normal(jax.random.key(4), (len(t), *law.means.shape[1:]))

    def scaled_velocity(r, y, args):
        return bc(s - t, y) * v(y, t + r * (s - t))

    @jax.jit
    def ours(x, t, s):
        return analytic.flow_map(law, path)(x, t, s), u(x, t, s)

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(scaled_velocity),
        diffrax.Dopri8(),
        t0=0.0,
        t1=1.0,
        dt0=None,
        y0=x,
        stepsize_controller=diffrax.PIDController(rtol=1e-12, atol=1e-12),
    )
    mapped, mean = ours(x, t, s)
    close(mapped, solution.ys[0], 1e-9)
    close(x + bc(s - t, x) * mean, solution.ys[0], 1e-9)


@pytest.mark.parametrize("interpolant", EXACT_ENDS)
def test_one_step_sample_of_a_gaussian(interpolant):
    mean, std = jnp.array([2.0, -1.0, 0.0]), jnp.array([0.1, 1.0, 3.0])
    law = analytic.gaussian(mean, std)
    u = analytic.average_velocity(law, INTERPOLANTS[interpolant]())
    x0 = jax.random.normal(jax.random.key(5), (50, 3))
    x1 = x0 + jax.jit(u)(x0, jnp.zeros(50), jnp.ones(50))
    close(x1, mean[None] + std[None] * x0, 1e-14)


def line_cdf(law, x):
    w, m, s = (np.asarray(a).ravel() for a in law)
    return (w * ndtr((np.asarray(x) - m) / s)).sum(axis=-1)


@pytest.mark.parametrize("interpolant", ["linear", "bridge"])
def test_one_step_samples_have_the_law_of_the_mixture(interpolant):
    law, path = MIXTURES["three_modes"](), INTERPOLANTS[interpolant]()
    quantile = np.linspace(0.0005, 0.9995, 1000)
    x0 = jnp.asarray(ndtri(quantile)[:, None])
    u = jax.jit(analytic.average_velocity(law, path))
    x1 = x0 + u(x0, jnp.zeros(1000), jnp.ones(1000))
    np.testing.assert_allclose(line_cdf(law, x1), quantile, rtol=1e-13)


def far_quantile(law, level):
    """Solve log(1 - F(y)) = level for a mixture on the line, with scipy alone."""
    w, m, s = (np.asarray(a).ravel() for a in law)
    excess = lambda y: logsumexp(np.log(w) + log_ndtr(-(y - m) / s)) - level  # noqa: E731
    return brentq(excess, -100, 100, xtol=1e-13, rtol=1e-14)


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_both_tails_of_the_map_are_precise(side):
    law = MIXTURES["three_modes"]()
    mirrored = law._replace(means=side * law.means)
    # At 20 log_ndtr changes over to its tail series.
    x = jnp.array([3.0, 6.0, 9.0, 19.9, 20.02, 37.0, 60.0])[:, None]
    X = analytic.flow_map(mirrored, interpolants.linear())
    zeros, ones = jnp.zeros(len(x)), jnp.ones(len(x))

    @jax.jit
    def with_slope(x):
        return jax.jvp(lambda x: X(x, zeros, ones), (x,), (jnp.ones_like(x),))

    y, slope = with_slope(side * x)
    expected = [far_quantile(law, level) for level in log_ndtr(-np.asarray(x))[:, 0]]
    np.testing.assert_allclose(side * y[:, 0], expected, rtol=1e-12)
    # The widest component rules the tail.
    np.testing.assert_allclose(slope[-2:], 0.5, rtol=1e-2)
    close(jax.jit(X)(y, ones, zeros), side * x, 1e-12)


def test_map_between_far_modes_is_finite():
    law = analytic.mixture([1.0, 1.0], [[-1.0], [1.0]], 0.01)
    u = jax.jit(analytic.average_velocity(law, interpolants.linear()))
    x = jnp.array([-2.0, -0.5, -1e-3, 0.0, 1e-3, 0.5, 2.0])[:, None]
    zeros, ones = jnp.zeros(len(x)), jnp.ones(len(x))
    mean, along = jax.jvp(u, (x, zeros, ones), (x, ones, zeros))
    assert np.isfinite(mean).all()
    assert np.isfinite(along).all()
    one_step = np.asarray(x + mean)[:, 0]
    half = np.where(np.asarray(x)[:, 0] > 0, 2 * ndtr(-np.asarray(x)[:, 0]), np.nan)
    expected = 1 - 0.01 * ndtri(half)
    np.testing.assert_allclose(one_step[4:], expected[4:], rtol=1e-9)
    np.testing.assert_allclose(one_step[:3], -one_step[:3:-1], rtol=1e-9)


def test_a_split_gaussian_is_still_that_gaussian():
    whole = analytic.gaussian([0.5], [0.7])
    split = analytic.mixture([0.2, 0.8], [[0.5], [0.5]], 0.7)
    x = jnp.linspace(-3.0, 3.0, 9)[:, None]
    t, s = jnp.linspace(0.0, 1.0, 9), jnp.linspace(1.0, 0.2, 9)
    expected = evaluate_all(whole, x, t, s)
    for name, value in evaluate_all(split, x, t, s).items():
        close(value, expected[name], 1e-12)


def test_a_data_set_is_a_mixture_of_points(key):
    data = jax.random.normal(key, (7, 3))
    law = analytic.mixture(np.ones(7), data, 0.0)
    x = jax.random.normal(jax.random.key(6), (4, 3))
    t = jnp.array([0.0, 0.3, 0.6, 0.9])
    distance = ((x[:, None] - bc(t, data[None]) * data[None]) ** 2).sum(axis=-1)
    posterior = jax.nn.softmax(-distance / (2 * (1 - t[:, None]) ** 2), axis=1)
    mean = (posterior[:, :, None] * data[None]).sum(axis=1)
    path = interpolants.linear()
    close(analytic.posterior_mean(law, path)(x, t), mean, 1e-12)
    close(analytic.velocity(law, path)(x, t), (mean - x) / (1 - t[:, None]), 1e-11)


def test_samples_have_the_law_of_the_mixture(key):
    batch = 20_000
    line = MIXTURES["three_modes"]()
    uniform = np.sort(line_cdf(line, analytic.sample(key, line, batch)))
    distance = np.abs(uniform - (np.arange(batch) + 0.5) / batch).max()
    assert distance < 1.63 / batch**0.5  # Kolmogorov-Smirnov, 1 %
    plane = MIXTURES["two_modes_plane"]()
    x = analytic.sample(key, plane, batch)
    w, m, s = (np.asarray(a) for a in plane)
    mean = w @ m
    np.testing.assert_allclose(x.mean(axis=0), mean, atol=0.03)
    covariance = np.einsum("k,ki,kj->ij", w, m - mean, m - mean) + np.diag(w @ s**2)
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.03)


def test_weights_are_normalised():
    law = analytic.mixture([1, 3], [[0], [2]], [[1], [2]])
    np.testing.assert_array_equal(law.weights, [0.25, 0.75])
    assert {a.dtype for a in law} == {jnp.dtype(jnp.float64)}
    one = analytic.gaussian(np.ones((2, 3)), 0.5)
    assert one.means.shape == one.stds.shape == (1, 2, 3)


def all_fields(law, path):
    """Name every field, each as a function of (x, t, s, cond)."""
    v, score = analytic.velocity(law, path), analytic.score(law, path)
    x1, log_p = analytic.posterior_mean(law, path), analytic.log_density(law, path)
    return {
        "velocity": lambda x, t, s, cond: v(x, t, cond),
        "score": lambda x, t, s, cond: score(x, t, cond),
        "posterior mean": lambda x, t, s, cond: x1(x, t, cond),
        "log density": lambda x, t, s, cond: log_p(x, t, cond),
        "flow map": analytic.flow_map(law, path),
        "average velocity": analytic.average_velocity(law, path),
    }


@jax.jit
def evaluate_all(law, x, t, s, cond=None):
    fields = all_fields(law, interpolants.linear())
    return {name: field(x, t, s, cond) for name, field in fields.items()}


def field_inputs(law, batch=40):
    key_state, key_start, key_stop = jax.random.split(jax.random.key(7), 3)
    x = jax.random.normal(key_state, (batch, *law.means.shape[1:]))
    t = jax.random.uniform(key_start, (batch,)).at[0].set(0.0).at[1].set(0.5)
    s = jax.random.uniform(key_stop, (batch,)).at[0].set(1.0).at[1].set(0.5)
    return x, t, s


@each_with_map
def test_rows_are_independent_and_conditions_ignored(mixture):
    law = MIXTURES[mixture]()
    x, t, s = field_inputs(law)
    one = evaluate_all(law, x, t, s, {"label": jnp.zeros(len(x))})
    odd = jnp.arange(len(x)) % 2 == 1
    x, t, s = jnp.where(bc(odd, x), x, 9.0), jnp.where(odd, t, 0.1), s.at[0].set(0.3)
    other = evaluate_all(law, x, t, s, {"label": jnp.ones(len(x))})
    for name, value in one.items():
        np.testing.assert_array_equal(value[odd], other[name][odd], err_msg=name)


def test_eager_fields_equal_compiled_ones():
    law, path = MIXTURES["two_modes_plane"](), interpolants.variance_preserving()
    x, t, _ = field_inputs(law)
    for make in (analytic.velocity, analytic.log_density):
        field = make(law, path)
        close(jax.jit(field)(x, t), field(x, t), 1e-14)


def test_float32():
    law = MIXTURES["three_modes"]()
    x, t, s = field_inputs(law)
    s = jnp.where(jnp.arange(len(s)) % 4 == 0, jnp.clip(t + 1e-3, 0, 1), s)
    truth = evaluate_all(law, x, t, s, {"label": jnp.zeros(len(x))})
    x, t, s = (a.astype(jnp.float32) for a in (x, t, s))
    inside = analytic.velocity(law, interpolants.linear())(x, t)
    assert inside.dtype == jnp.float32
    with jax.enable_x64(False):
        law = MIXTURES["three_modes"]()
        for name, value in evaluate_all(law, x, t, s).items():
            assert value.dtype == jnp.float32, name
            np.testing.assert_allclose(value, truth[name], rtol=1e-4, atol=1e-4)


@each_with_map
def test_reverse_mode_equals_forward_mode(mixture):
    law = MIXTURES[mixture]()
    u = analytic.average_velocity(law, interpolants.linear())
    x, t, s = field_inputs(law)
    one = tuple(map(jnp.ones_like, (x, t, s)))

    @jax.jit
    def both(*inputs):
        gradient = jax.grad(lambda *a: u(*a).sum(), argnums=(0, 1, 2))(*inputs)
        rows = sum(g.reshape(len(g), -1).sum(axis=1) for g in gradient)
        return rows, jax.jvp(u, inputs, one)[1].reshape(len(rows), -1).sum(axis=1)

    reverse, forward = both(x, t, s)
    assert np.isfinite(reverse).all()
    close(reverse, forward, 1e-11)


def test_the_mixture_may_be_traced():
    path = interpolants.linear()
    x, t = jnp.ones((3, 2)), jnp.array([0.2, 0.5, 1.0])

    def velocity(mean, std):
        return analytic.velocity(analytic.gaussian(mean, std), path)(x, t)

    means = jnp.array([[0.0, 1.0], [2.0, 3.0]])
    many = jax.vmap(jax.jit(velocity), (0, None))(means, 0.5)
    close(many[1], velocity(means[1], 0.5), 1e-13)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [0.0], [1.0]), r"`means` must have shape \[k, \*event\]; got \(1,\)"),
        (([1.0, 1.0], [[0.0]], [[1.0]]), r"`weights` must have shape \[k\]=\(1,\)"),
        (([[1.0]], [[0.0]], [[1.0]]), r"`weights` .* got \(1, 1\)"),
        (([1.0], [[0.0, 1.0]], [[1.0]]), r"`stds` must be a scalar or have shape"),
        (([1.0, 0.0], [[0.0], [1.0]], 1.0), "`weights` must be positive"),
        (([1.0, float("nan")], [[0.0], [1.0]], 1.0), "`weights` must be finite"),
        (([1.0], [[0.0]], [[-1.0]]), "`stds` must not be negative"),
    ],
)
def test_mixtures_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        analytic.mixture(*arguments)


def test_gaussian_needs_an_event_axis():
    with pytest.raises(ValueError, match=r"`mean` must have shape \[\*event\]"):
        analytic.gaussian(0.0, 1.0)
    with pytest.raises(ValueError, match="`stds` must be a scalar or have shape"):
        analytic.gaussian([0.0, 1.0], [1.0])


@pytest.mark.parametrize("make", [analytic.flow_map, analytic.average_velocity])
def test_maps_without_closed_form_are_refused(make):
    with pytest.raises(ValueError, match=r"2 components .* flowjax\.sampling\.ode"):
        make(MIXTURES["two_modes_plane"](), interpolants.linear())


@pytest.mark.usefixtures("untyped")
def test_arguments_that_do_not_fit_are_refused(key):
    law = analytic.gaussian([0.0, 1.0], 1.0)
    x, t = jnp.ones((4, 2)), jnp.full(4, 0.5)
    for field in all_fields(law, interpolants.linear()).values():
        with pytest.raises(ValueError, match=r"`x` must have the event shape \(2,\)"):
            field(x[:, :1], t, t, None)
        with pytest.raises(ValueError, match="`x` must have a floating dtype"):
            field(x.astype(int), t, t, None)
        with pytest.raises(ValueError, match=r"`t` must have shape \[batch\]=\(4,\)"):
            field(x, t[:, None], t, None)
    for make in (analytic.flow_map, analytic.average_velocity):
        with pytest.raises(ValueError, match=r"`s` must lie in \[0, 1\]"):
            make(law, interpolants.linear())(x, t, t + 1)
    with pytest.raises(ValueError, match="`batch` must be at least 1; got 0"):
        analytic.sample(key, law, 0)
