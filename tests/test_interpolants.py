import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import interpolants
from flowjax.events import expand_like
from flowjax.interpolants import Interpolant

PI = np.pi
WEAK = np.exp(-(0.1 + 20.0) / 4)  # alpha(0) of the diffusion path


def bridge() -> Interpolant:
    """The line with a Brownian bridge: gamma' diverges at both ends, V' does not."""
    return Interpolant(
        alpha=lambda t: t,
        sigma=lambda t: 1 - t,
        gamma=lambda t: jnp.sqrt(t * (1 - t)),
        variance=lambda t: 1 - t,
    )


def smooth_latent() -> Interpolant:
    return Interpolant(
        alpha=lambda t: t, sigma=lambda t: 1 - t, gamma=lambda t: t * (1 - t)
    )


def diffusion(t):
    tau = (1 - t) ** 2 * (20.0 - 0.1) / 2 + (1 - t) * 0.1
    rate = -((1 - t) * (20.0 - 0.1) + 0.1)
    alpha, sigma = np.exp(-tau / 2), np.sqrt(1 - np.exp(-tau))
    return alpha, sigma, -rate * alpha / 2, rate * alpha**2 / (2 * sigma)


# name: (factory, closed form t -> (alpha, sigma, alpha', sigma'),
#        (alpha, sigma) at t=0, (alpha, sigma) at t=1)
MEMBERS = {
    "linear": (
        interpolants.linear,
        lambda t: (t, 1 - t, 1 + 0 * t, -1 + 0 * t),
        (0.0, 1.0),
        (1.0, 0.0),
    ),
    "trigonometric": (
        interpolants.trigonometric,
        lambda t: (
            np.sin(PI * t / 2),
            np.cos(PI * t / 2),
            PI / 2 * np.cos(PI * t / 2),
            -PI / 2 * np.sin(PI * t / 2),
        ),
        (0.0, 1.0),
        (1.0, 0.0),
    ),
    "polynomial_1": (
        lambda: interpolants.polynomial(1.0),
        lambda t: (t, 1 - t, 1 + 0 * t, -1 + 0 * t),
        (0.0, 1.0),
        (1.0, 0.0),
    ),
    "polynomial_1.5": (
        lambda: interpolants.polynomial(1.5),
        lambda t: (t**1.5, 1 - t**1.5, 1.5 * t**0.5, -1.5 * t**0.5),
        (0.0, 1.0),
        (1.0, 0.0),
    ),
    "polynomial_3": (
        lambda: interpolants.polynomial(3),
        lambda t: (t**3, 1 - t**3, 3 * t**2, -3 * t**2),
        (0.0, 1.0),
        (1.0, 0.0),
    ),
    "accelerated_line": (
        lambda: interpolants.accelerated_line(1.5),
        lambda t: (1.5 * t - t**2 / 2, 1 - 1.5 * t + t**2 / 2, 1.5 - t, t - 1.5),
        (0.0, 1.0),
        (1.0, 0.0),
    ),
    "minimum_noise": (
        lambda: interpolants.minimum_noise(0.1),
        lambda t: (t, 1 - 0.9 * t, 1 + 0 * t, -0.9 + 0 * t),
        (0.0, 1.0),
        (1.0, 0.1),
    ),
    "linear_variance_preserving": (
        interpolants.linear_variance_preserving,
        lambda t: (t, np.sqrt(1 - t**2), 1 + 0 * t, -t / np.sqrt(1 - t**2)),
        (0.0, 1.0),
        (1.0, 0.0),
    ),
    "variance_preserving": (
        interpolants.variance_preserving,
        diffusion,
        (WEAK, np.sqrt(1 - WEAK**2)),
        (1.0, 0.0),
    ),
}
UNIT_VARIANCE = ["trigonometric", "linear_variance_preserving", "variance_preserving"]
LATENT = {"bridge": bridge, "smooth_latent": smooth_latent}
ALL = {name: row[0] for name, row in MEMBERS.items()} | LATENT

each_member = pytest.mark.parametrize("name", MEMBERS)
each = pytest.mark.parametrize("name", ALL)


def inner_times():
    return jnp.array([0.003, 0.1, 0.25, 0.5, 0.8, 0.97, 0.999])


def batch_of(key, name, batch=5, event=(2, 3)):
    """Return the interpolant, (x0, x1), times and the latent noise it needs."""
    key_source, key_data, key_time, key_latent = jax.random.split(key, 4)
    x0 = jax.random.normal(key_source, (batch, *event))
    x1 = jax.random.normal(key_data, (batch, *event))
    t = jax.random.uniform(key_time, (batch,), minval=0.1, maxval=0.9)
    z = jax.random.normal(key_latent, x1.shape) if name in LATENT else None
    return ALL[name](), (x0, x1), t, z


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("x64_enabled", [False, True])
@each_member
def test_endpoints_are_exact(name, x64_enabled, compiled):
    make, _, start, stop = MEMBERS[name]
    with jax.enable_x64(x64_enabled):
        dtype = jnp.float64 if x64_enabled else jnp.float32
        member = make()
        alpha, sigma = (jax.jit(f) if compiled else f for f in member[:2])
        for t, expected in ((0.0, start), (1.0, stop)):
            t = jnp.full((1,), t, dtype)
            got = np.stack([alpha(t), sigma(t)])[:, 0]
            assert got.dtype == dtype
            # Exact to the last bit where the value is 0 or 1. Elsewhere rounded: the
            # exponent 5 of the diffusion path's alpha(0) costs five units.
            rtol = 0 if set(expected) <= {0.0, 1.0} else 6 * jnp.finfo(dtype).eps
            np.testing.assert_allclose(got, expected, rtol=rtol, atol=0)


@pytest.mark.usefixtures("x64")
@each_member
def test_coefficients_match_closed_form(name):
    make, closed_form, *_ = MEMBERS[name]
    t = inner_times()
    c = interpolants.coefficients(make(), t)
    got = (c.alpha, c.sigma, c.d_alpha, c.d_sigma)
    for value, expected in zip(got, closed_form(np.asarray(t)), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-11)
    np.testing.assert_array_equal(c.gamma, 0)
    np.testing.assert_array_equal(c.d_gamma, 0)


@pytest.mark.usefixtures("x64")
@each
def test_derivatives_match_central_differences(name):
    member = ALL[name]()
    t = jnp.array([0.1, 0.3, 0.5, 0.7, 0.9])
    h = 1e-5
    low, mid, high = (interpolants.coefficients(member, t + d) for d in (-h, 0, h))
    for part in ("alpha", "sigma", "gamma"):
        difference = (getattr(high, part) - getattr(low, part)) / (2 * h)
        np.testing.assert_allclose(
            getattr(mid, f"d_{part}"), difference, rtol=1e-7, atol=1e-9
        )
    variance = [c.sigma**2 + c.gamma**2 for c in (low, high)]
    rate = (variance[1] - variance[0]) / (4 * h)
    np.testing.assert_allclose(mid.variance_rate, rate, rtol=1e-7, atol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", [*UNIT_VARIANCE[1:], "bridge"])
def test_variance_is_that_of_the_noise(name):
    member = ALL[name]()
    assert member.variance is not None
    t = inner_times()
    c = interpolants.coefficients(member, t)
    np.testing.assert_allclose(member.variance(t), c.sigma**2 + c.gamma**2, rtol=1e-12)
    rate = c.sigma * c.d_sigma + c.gamma * c.d_gamma
    np.testing.assert_allclose(c.variance_rate, rate, rtol=1e-11)


@pytest.mark.usefixtures("x64")
@each
def test_variance_rate_is_finite_at_both_ends(name):
    ends = jnp.array([0.0, 1.0])
    rate = interpolants.coefficients(ALL[name](), ends).variance_rate
    inside = jnp.abs(ends - 1e-9)
    nearby = interpolants.coefficients(ALL[name](), inside).variance_rate
    # polynomial(1.5) has a rate of order sqrt(t), 5e-5 at t=1e-9.
    np.testing.assert_allclose(rate, nearby, rtol=1e-6, atol=1e-4)


@pytest.mark.usefixtures("x64")
@each
def test_velocity_is_the_derivative_of_the_path(name, key):
    member, (x0, x1), t, z = batch_of(key, name)

    def position(t):
        return interpolants.sample_path(member, x0, x1, t, z=z).x

    _, expected = jax.jvp(position, (t,), (jnp.ones_like(t),))
    path = interpolants.sample_path(member, x0, x1, t, z=z)
    np.testing.assert_allclose(path.v, expected, rtol=1e-12, atol=1e-13)
    h = 1e-5
    difference = (position(t + h) - position(t - h)) / (2 * h)
    np.testing.assert_allclose(path.v, difference, rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("x64")
@each
def test_path_starts_at_the_source_and_ends_at_the_data(name, key):
    member, (x0, x1), t, z = batch_of(key, name)
    _, _, start, stop = MEMBERS.get(name, (0, 0, (0.0, 1.0), (1.0, 0.0)))
    for time, (alpha, sigma) in ((0.0, start), (1.0, stop)):
        path = interpolants.sample_path(member, x0, x1, jnp.full_like(t, time), z=z)
        np.testing.assert_allclose(path.x, alpha * x1 + sigma * x0, rtol=1e-14)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("power", [1, 1.0, 1.5, 2, 3.7])
def test_polynomial_is_the_line_at_another_pace(power, key):
    _, (x0, x1), t, _ = batch_of(key, "linear")
    path = interpolants.sample_path(interpolants.polynomial(power), x0, x1, t)
    line = interpolants.sample_path(interpolants.linear(), x0, x1, t**power)
    pace = expand_like(power * t ** (power - 1), x1)
    np.testing.assert_allclose(path.x, line.x, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(path.v, pace * line.v, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", UNIT_VARIANCE)
def test_variance_is_preserved(name):
    t = jnp.linspace(0.0, 1.0, 101)
    alpha, sigma = (f(t) for f in ALL[name]()[:2])
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-14)


@pytest.mark.usefixtures("x64")
def test_diffusion_path_obeys_its_beta_schedule():
    beta_min, beta_max = 0.3, 7.0
    member = interpolants.variance_preserving(beta_min, beta_max)
    t = inner_times()
    beta = beta_min + (1 - t) * (beta_max - beta_min)
    c = interpolants.coefficients(member, t)
    # dx = -beta/2 x dt + sqrt(beta) dW in the paper's clock 1 - t.
    np.testing.assert_allclose(c.d_alpha, beta / 2 * c.alpha, rtol=1e-12)
    np.testing.assert_allclose(2 * c.variance_rate, -beta * c.alpha**2, rtol=1e-12)


@pytest.mark.parametrize("t_bits", [32, 64])
@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.usefixtures("x64")
@each
def test_path_has_the_dtype_of_the_data(name, bits, t_bits, key):
    dtype = {16: jnp.bfloat16, 32: jnp.float32, 64: jnp.float64}[bits]
    member, (x0, x1), t, z = batch_of(key, name)
    x0, x1 = x0.astype(dtype), x1.astype(dtype)
    z = None if z is None else z.astype(dtype)
    t = t.astype(f"float{t_bits}")
    path = interpolants.sample_path(member, x0, x1, t, z=z)
    assert path.x.dtype == path.v.dtype == dtype
    assert path.t.dtype == t.dtype
    assert path.x.shape == path.v.shape == x1.shape


def test_path_hands_its_inputs_on(key):
    member, (x0, x1), t, _ = batch_of(key, "linear")
    cond = {"label": jnp.arange(5), "text": jnp.ones((5, 4))}
    path = interpolants.sample_path(member, x0, x1, t, cond)
    assert path.x0 is x0
    assert path.x1 is x1
    assert path.t is t
    assert path.cond is cond
    rows = jax.tree.map(lambda a: a[:2], path)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(rows)} == {2}


@pytest.mark.usefixtures("x64")
@each
def test_rows_do_not_depend_on_each_other_nor_on_compilation(name, key):
    member, (x0, x1), t, z = batch_of(key, name)

    def velocity(x0, x1, t, z):
        return interpolants.sample_path(member, x0, x1, t, z=z).v

    whole = velocity(x0, x1, t, z)
    part = velocity(*jax.tree.map(lambda a: a[1:3], (x0, x1, t, z)))
    np.testing.assert_allclose(part, whole[1:3], rtol=1e-14)
    np.testing.assert_allclose(
        jax.jit(velocity)(x0, x1, t, z), whole, rtol=1e-13, atol=1e-14
    )


def test_a_coefficient_may_have_any_shape_of_time():
    t = jnp.linspace(0.1, 0.9, 6).reshape(2, 3)
    c = interpolants.coefficients(bridge(), t)
    assert {part.shape for part in c} == {(2, 3)}
    np.testing.assert_allclose(interpolants.derivative(lambda t: t**2, t), 2 * t)


BAD_PATHS = {
    "integer data": (dict(x1=jnp.int32), "`x1` must have a floating dtype; got int32"),
    "integer source": (dict(x0=jnp.int32), "`x0` must have a floating dtype"),
    "integer time": (dict(t=jnp.int32), "`t` must have a floating dtype"),
    "mixed dtypes": (dict(x0=jnp.bfloat16), "`x0` must have the dtype of `x1`=float32"),
    "no event axis": (
        dict(x0=(5,), x1=(5,)),
        r"`x0` must have shape \[batch, \*event\]; got \(5,\)",
    ),
    "other source": (dict(x0=(5, 3)), r"got \(5, 2\), and event is that of `x0`"),
    "time column": (
        dict(t=(5, 1)),
        r"`t` must have shape \[batch\]=\(5,\); got \(5, 1\)",
    ),
    "other batch of times": (dict(t=(4,)), r"`t` must have shape \[batch\]=\(5,\)"),
    "time beyond 1": (dict(t=1.5), r"`t` must lie in \[0, 1\].* from 1.5 to 1.5"),
    "time before 0": (dict(t=-0.5), r"`t` must lie in \[0, 1\]"),
    "time unknown": (dict(t=float("nan")), r"`t` must lie in \[0, 1\]"),
    "short condition": (
        dict(cond={"label": (4,)}),
        r"`cond\['label'\]` must have the leading axis batch=5; got shape \(4,\)",
    ),
    "extra latent": (dict(z=(5, 2)), "takes no latent `z`"),
}


def altered(default, change):
    """Apply a change to an array: another shape, another dtype or another value."""
    if isinstance(change, tuple):
        return jnp.full(change, 0.5)
    if isinstance(change, float):
        return jnp.full_like(default, change)
    if isinstance(change, dict):
        return {name: jnp.zeros(shape) for name, shape in change.items()}
    return default.astype(change)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("case", BAD_PATHS)
def test_arguments_that_do_not_fit_are_refused(case):
    changes, message = BAD_PATHS[case]
    inputs = dict(x0=jnp.ones((5, 2)), x1=jnp.ones((5, 2)), t=jnp.full((5,), 0.5))
    for name, change in changes.items():
        inputs[name] = altered(inputs.get(name), change)
    with pytest.raises(ValueError, match=message):
        interpolants.sample_path(interpolants.linear(), **inputs)


@pytest.mark.usefixtures("untyped")
def test_latent_noise_must_be_given():
    x, t = jnp.ones((5, 2)), jnp.full((5,), 0.5)
    with pytest.raises(ValueError, match="takes a latent `z`; got none"):
        interpolants.sample_path(bridge(), x, x, t)


@pytest.mark.usefixtures("untyped")
def test_latent_noise_must_have_the_shape_of_the_data():
    x, t = jnp.ones((5, 2)), jnp.full((5,), 0.5)
    with pytest.raises(ValueError, match=r"`z` must have shape .*=\(5, 2\)"):
        interpolants.sample_path(bridge(), x, x, t, z=jnp.ones((5, 1)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: interpolants.polynomial(0.5), "`power` must be at least 1; got 0.5"),
        (lambda: interpolants.polynomial(float("nan")), "`power` must be at least 1"),
        (lambda: interpolants.minimum_noise(1.0), r"must lie in \[0, 1\); got 1.0"),
        (lambda: interpolants.minimum_noise(-0.1), r"must lie in \[0, 1\); got -0.1"),
        (lambda: interpolants.variance_preserving(0.0), "got 0.0 and 20.0"),
        (lambda: interpolants.variance_preserving(2.0, 1.0), "got 2.0 and 1.0"),
    ],
)
def test_factories_refuse_bad_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@each
@pytest.mark.usefixtures("x64")
def test_noise_level_is_the_deviation_of_all_noise(name):
    member, t = ALL[name](), inner_times()
    gamma = 0.0 if member.gamma is None else member.gamma(t)
    level = interpolants.noise_level(member, t)
    np.testing.assert_allclose(level, np.hypot(member.sigma(t), gamma), rtol=1e-12)
    np.testing.assert_allclose(
        interpolants.noise_variance(member, t), level**2, rtol=1e-12
    )


@each
@pytest.mark.parametrize("traced", [False, True])
def test_time_of_ratio_inverts_noise_over_signal(name, traced):
    member = ALL[name]()
    with jax.enable_x64(True):
        t = inner_times()
        ratio = np.asarray(interpolants.noise_level(member, t) / member.alpha(t))

    def times_found(_):
        return interpolants.time_of_ratio(member, ratio.reshape(1, -1))

    found = times_found(None)
    if traced:  # float64 on the host also where a caller is traced in float32
        seen = []
        jax.jit(lambda x: seen.append(times_found(x)) or x)(1.0)
        np.testing.assert_array_equal(seen[0], found)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found[0], t, rtol=1e-9)
    assert interpolants.time_of_ratio(member, 1e30) < 1e-9
    last = interpolants.time_of_ratio(member, 0.0)
    np.testing.assert_allclose(last, 1.0, atol=1e-15)
