"""Policies against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import analytic, policies, sampling
from flowjax.fields import flow_map
from tests.policy_problems import (
    LINEAR,
    MEAN,
    MIXTURES,
    SCALE,
    exact_maker,
    posterior_policy,
    starts,
    straight_maker,
)

pytestmark = pytest.mark.usefixtures("x64")

NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)
NODES, WEIGHTS = (NODES + 1) / 2, WEIGHTS / 2


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("start", [0.0, 0.4, 0.9])
def test_exact_posterior_gives_the_marginal_velocity_everywhere(key, name, start):
    mixture = MIXTURES[name]()
    velocity = analytic.velocity(mixture, LINEAR)

    @jax.jit
    def both(x, t, now):
        policy = posterior_policy(mixture, starts(key, mixture, t).x, t)
        return policy.velocity(x, now), velocity(x, now)

    x, t = 3 * jax.random.normal(key, (8, 2)), jnp.full(8, start)
    for share in (0.0, 0.3, 0.99, 1.0):
        got, expected = both(x, t, t + share * (1 - t))
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["round_plane", "stretched_plane"])
def test_steps_along_it_converge_to_the_flow_map_at_first_order(key, name):
    mixture = MIXTURES[name]()
    t = jnp.linspace(0, 0.6, 8)
    s = jnp.linspace(1, 0.7, 8)
    path = starts(key, mixture, t)
    policy = posterior_policy(mixture, path.x, t)
    truth = analytic.flow_map(mixture, LINEAR)(path.x, t, s)
    ends = [
        flow_map(policies.policy_average(policy, steps=n))(path.x, t, s)
        for n in (512, 1024)
    ]
    coarse, fine = (jnp.abs(end - truth).max() for end in ends)
    assert 1e-5 < fine < 5e-3
    np.testing.assert_allclose(coarse / fine, 2, rtol=0.02)
    np.testing.assert_allclose(2 * ends[1] - ends[0], truth, atol=5e-5)


def test_mixture_is_the_posterior_on_a_grid():
    """Two components at the start, any state later: brute force over x1."""
    weights, means, std = np.array([0.3, 0.7]), np.array([-0.8, 1.1]), 0.5
    xs, s, x, t = 0.4, 0.25, -0.3, 0.65
    x1 = np.linspace(-12, 12, 20001)
    start = (weights * np.exp(-((x1[:, None] - means) ** 2) / (2 * std**2))).sum(1)
    later = np.exp(-((x - t * x1) ** 2) / (2 * (1 - t) ** 2))
    before = np.exp(-((xs - s * x1) ** 2) / (2 * (1 - s) ** 2))
    posterior = start * later / before
    expected = ((x1 * posterior).sum() / posterior.sum() - x) / (1 - t)
    policy = policies.GaussianMixturePolicy(
        jnp.array([[xs]]),
        jnp.array([s]),
        jnp.log(weights)[None, :, None],
        jnp.array(means)[None, :, None],
        jnp.array([[[std**2]]]),
    )
    got = policy.velocity(jnp.array([[x]]), jnp.array([t]))
    np.testing.assert_allclose(got[0, 0], expected, rtol=1e-11)


def grid_policy(raw, x, t):
    return policies.data_grid_policy(raw, x, t, t + 0.4)


FACTORIES = {
    # name: factory, extra features per component, shared features
    "gaussian_mixture": (policies.gaussian_mixture_policy, 1, 1),
    "data_grid": (grid_policy, 0, 0),
    "momentum": (policies.momentum_policy, 2, 0),
}


def random_policy(key, name, *, event=(3, 2), components=4, batch=6):
    factory, extra, shared = FACTORIES[name]
    key_raw, key_x = jax.random.split(key)
    features = components * (event[-1] + extra) + shared
    raw = jax.random.normal(key_raw, (batch, *event[:-1], features))
    x = jax.random.normal(key_x, (batch, *event))
    t = jnp.linspace(0, 0.5, batch)
    return raw, x, t, jax.jit(factory)(raw, x, t)


@pytest.mark.parametrize("name", FACTORIES)
def test_at_the_start_the_velocity_is_the_networks(key, name):
    raw, x, t, policy = random_policy(key, name)
    _, extra, shared = FACTORIES[name]
    blocks = raw[..., : raw.shape[-1] - shared].reshape(6, 3, 4, 2 + extra)
    if name == "data_grid":
        weights = jnp.array([1.0, 0, 0, 0])
    else:
        weights = jax.nn.softmax(blocks[..., 2], -1)
    expected = (jnp.broadcast_to(weights, (6, 3, 4))[..., None] * blocks[..., :2]).sum(
        2
    )
    np.testing.assert_allclose(policy.velocity(x, t), expected, atol=1e-12)


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("event", [(2,), (3, 2), (2, 2, 3)])
def test_rows_and_positions_are_independent(key, name, event):
    raw, x, t, policy = random_policy(key, name, event=event)
    velocity = jax.jit(lambda policy, x, t: policy.velocity(x + 0.3, t + 0.2))
    value = velocity(policy, x, t)
    assert value.shape == x.shape
    rows = jax.tree.map(lambda a: a[2:4], policy)
    np.testing.assert_allclose(velocity(rows, x[2:4], t[2:4]), value[2:4], rtol=1e-12)
    # Every position is a row of its own, with the same times.
    flat_raw, flat_x = (a.reshape(-1, a.shape[-1]) for a in (raw, x))
    flat_t = jnp.repeat(t, len(flat_x) // len(t))
    flat = jax.jit(FACTORIES[name][0])(flat_raw, flat_x, flat_t)
    alone = velocity(flat, flat_x, flat_t)
    np.testing.assert_allclose(alone.reshape(x.shape), value, rtol=1e-12)


@pytest.mark.parametrize("name", FACTORIES)
def test_output_that_does_not_fit_is_refused(key, name, untyped):
    raw, x, t, _ = random_policy(key, name)
    factory, extra, shared = FACTORIES[name]
    with pytest.raises(ValueError, match=rf"k \* {2 + extra} \+ {shared}"):
        factory(raw[..., 1:], x, t)
    with pytest.raises(ValueError, match="must have shape"):
        factory(raw[..., : shared or 1], x, t)
    with pytest.raises(ValueError, match="must have shape"):
        factory(raw[:, :2], x, t)


def test_parameters_of_the_gaussian_mixture():
    x, t = jnp.array([[1.0, 2.0]]), jnp.array([0.25])
    raw = jnp.array([[1.0, -1, 0.1, 2, 4, 0.2, jnp.log(2.0)]])
    policy = policies.gaussian_mixture_policy(raw, x, t)
    np.testing.assert_allclose(policy.means, [[[1.75, 1.25], [2.5, 5.0]]])
    np.testing.assert_allclose(policy.log_weights, [[[0.1], [0.2]]])
    np.testing.assert_allclose(policy.variance, [[[1.5**2]]])


def test_data_grid_is_linear_between_its_points(key):
    points = jax.random.normal(key, (1, 3, 2))
    t, s = jnp.array([0.2]), jnp.array([0.6])
    policy = policies.DataGridPolicy(points, t, s)
    x = jnp.array([[0.3, -0.7]])
    cases = {0.2: (1, 0, 0), 0.3: (0.5, 0.5, 0), 0.4: (0, 1, 0), 0.55: (0, 0.25, 0.75)}
    for now, weights in {**cases, 0.6: (0, 0, 1)}.items():
        data = jnp.tensordot(jnp.array([weights], dtype=float), points[0], 1)
        expected = (data - x) / (1 - now)
        np.testing.assert_allclose(
            policy.velocity(x, jnp.array([now])), expected, rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("steps", [1, 3, 16])
def test_data_grid_arrives_at_its_prediction(key, steps):
    data = jax.random.normal(key, (4, 1, 2))
    x, t, s = jnp.ones((4, 2)), jnp.linspace(0, 0.6, 4), jnp.ones(4)
    policy = policies.DataGridPolicy(data, t, s)
    end = flow_map(policies.policy_average(policy, steps=steps))(x, t, s)
    np.testing.assert_allclose(end, data[:, 0], atol=1e-12)
    assert jnp.isfinite(policy.velocity(x, s)).all()


Z = [0.0, 1e-300, 1e-9, 1e-4, 0.05, 0.2999999, 0.3000001, 1.0, 4.0]


def test_mean_exponential_and_its_derivatives():
    f = policies.mean_exponential
    z = np.array([*Z, *(-z for z in Z[1:])])
    exponential = WEIGHTS * np.exp(z[:, None] * NODES)
    z = jnp.asarray(z)

    def slope(z):
        return jax.jvp(f, (z,), (jnp.ones_like(z),))[1]

    moment = [(exponential * NODES**k).sum(1) for k in range(3)]
    np.testing.assert_allclose(f(z), moment[0], rtol=1e-13)
    np.testing.assert_allclose(jax.jit(slope)(z), moment[1], rtol=1e-13)
    for function, k in ((f, 1), (slope, 2)):
        reverse = jax.jit(jax.vmap(jax.grad(function)))(z)
        np.testing.assert_allclose(reverse, moment[k], rtol=1e-13)


def test_displacement_is_the_integral_of_the_velocity(key):
    _, x, t, policy = random_policy(key, "momentum")
    # Rates of all kinds, the straight line among them.
    rates = jnp.array([0.0, 1e-7, -3.0, 2.0]).reshape(1, 4, 1, 1)
    policy = policy._replace(rates=rates + 0 * policy.rates)
    for a, b in ((t, t + 0.5), (t + 0.4, t + 0.1), (t + 0.2, t + 0.2)):
        times = a[None] + NODES[:, None] * (b - a)[None]
        values = jax.vmap(policy.velocity, (None, 0))(x, times)
        total = jnp.tensordot(WEIGHTS, values, 1)
        np.testing.assert_allclose(policy.average_velocity(a, b), total, rtol=1e-12)
        expected = (b - a)[:, None, None] * total
        np.testing.assert_allclose(policy.displacement(a, b), expected, atol=1e-13)
        # One step of it, however few Euler steps others would take.
        u = policies.policy_step(lambda *_: policy, steps=1)
        np.testing.assert_allclose(u(x, a, b), total, rtol=1e-12)


def test_momentum_components_start_out_different():
    raw = jnp.zeros((1, 3 * 4))
    policy = policies.momentum_policy(raw, jnp.zeros((1, 2)), jnp.zeros(1))
    expected = [0, np.log(0.2), np.log(4)]
    np.testing.assert_allclose(policy.rates[0, :, 0], expected, rtol=1e-12)
    # The first rate is not the network's to change.
    again = policies.momentum_policy(raw + 1.0, jnp.zeros((1, 2)), jnp.zeros(1))
    expected = [0, np.log(0.2) + 1, np.log(4) + 1]
    np.testing.assert_allclose(again.rates[0, :, 0], expected, rtol=1e-12)


@pytest.mark.parametrize("grid", [(0.0, 1.0), (0.0, 0.3, 1.0)])
def test_momentum_is_exact_where_the_truth_is_straight(key, grid):
    x0 = jax.random.normal(key, (8, 2))
    u = policies.policy_step(straight_maker, steps=1)
    x1 = sampling.few_step(u, x0, grid=grid)
    np.testing.assert_allclose(x1, MEAN[None] + SCALE[None] * x0, rtol=1e-12)


def test_policy_step_samples_segment_by_segment(key):
    mixture = MIXTURES["round_plane"]()
    x0 = jax.random.normal(key, (8, 2))
    u = policies.policy_step(exact_maker(mixture), steps=4)
    x1 = sampling.few_step(u, x0, grid=(0.0, 0.5, 1.0))
    velocity = analytic.velocity(mixture, LINEAR)
    by_hand = x0
    for k in range(8):
        by_hand = by_hand + velocity(by_hand, jnp.full(8, k / 8)) / 8
    np.testing.assert_allclose(x1, by_hand, rtol=1e-10)


@pytest.mark.parametrize("name", ["gaussian_mixture", "momentum"])
def test_dropped_components_have_no_say(key, name):
    _, x, t, policy = random_policy(key, name, batch=40, components=2)
    np.testing.assert_array_equal(
        policies.drop_components(key, policy, rate=0.0).log_weights, policy.log_weights
    )
    thin = policies.drop_components(key, policy, rate=0.7)
    gone = jnp.isneginf(thin.log_weights).astype(float)
    assert gone.min(1).max() == 0
    assert 0.2 < gone.mean() < 0.6  # 0.7 minus the rows that keep both: 0.21
    field = "means" if name == "gaussian_mixture" else "velocities"
    moved = thin._replace(**{field: getattr(thin, field) + 5.0 * gone})
    np.testing.assert_allclose(
        moved.velocity(x, t + 0.1), thin.velocity(x, t + 0.1), rtol=1e-12
    )
    assert jnp.abs(thin.velocity(x, t) - policy.velocity(x, t)).max() > 0.1


def test_mixtures_stay_finite_in_single_precision(key):
    raw, x, t, _ = random_policy(key, "gaussian_mixture")
    # Sharp components far apart, at both ends of the segment.
    raw = (raw * 5).at[..., -1].set(-6.0).astype(jnp.float32)
    x, t = x.astype(jnp.float32), t.astype(jnp.float32)

    def loss(raw, now):
        return policies.gaussian_mixture_policy(raw, x, t).velocity(x, now).sum()

    for now in (t, jnp.ones_like(t)):
        value, grad = jax.jit(jax.value_and_grad(loss))(raw, now)
        assert value.dtype == jnp.float32
        assert jnp.isfinite(value)
        assert jnp.isfinite(grad).all()
