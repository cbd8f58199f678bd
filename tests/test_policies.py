"""Policies against closed forms, and their imitation against exact teachers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import analytic, interpolants, policies, sampling
from flowjax.interpolants import Path, expand_like
from flowjax.objectives import policy as objectives
from flowjax.objectives.penalties import diagnosed

pytestmark = pytest.mark.usefixtures("x64")

LINEAR = interpolants.linear()
NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)
NODES, WEIGHTS = (NODES + 1) / 2, WEIGHTS / 2


def posterior_policy(mixture, x, t):
    """The exact p(x1 | x_t) of a mixture whose components share one std."""
    rest, now = expand_like(1 - t, x)[:, None], expand_like(t, x)[:, None]
    means, square = mixture.means[None], mixture.stds[:1][None] ** 2
    total = rest**2 + now**2 * square
    offset = x[:, None] - now * means
    log_weights = jnp.log(mixture.weights)[None, :, None] - (
        offset**2 / (2 * total)
    ).sum(-1)[..., None].reshape(len(x), -1, 1)
    return policies.GaussianMixturePolicy(
        x,
        t,
        log_weights,
        means + now * square / total * offset,
        jnp.broadcast_to(square * rest**2 / total, (len(x), 1, *x.shape[1:])),
    )


MIXTURES = {
    "gaussian": lambda: analytic.gaussian(jnp.array([1.5, -0.5]), 0.6),
    "stretched": lambda: analytic.gaussian(
        jnp.array([1.5, -0.5]), jnp.array([0.6, 1.7])
    ),
    "three_modes": lambda: analytic.mixture(
        jnp.array([0.2, 0.5, 0.3]),
        jnp.array([[-1.0, 0.5], [1.6, 1.0], [0.3, -2.0]]),
        0.4,
    ),
}


def exact_maker(mixture):
    return lambda x, t, s, cond=None, /: posterior_policy(mixture, x, t)


def starts(key, mixture, t, *, batch=8):
    key_data, key_noise = jax.random.split(key)
    x1 = analytic.sample(key_data, mixture, batch)
    x0 = jax.random.normal(key_noise, x1.shape)
    return interpolants.sample_path(LINEAR, x0, x1, t)


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


@pytest.mark.parametrize("name", ["gaussian", "stretched"])
def test_rollout_converges_to_the_flow_map_at_first_order(key, name):
    mixture = MIXTURES[name]()
    t = jnp.linspace(0, 0.6, 8)
    s = jnp.linspace(1, 0.7, 8)
    path = starts(key, mixture, t)
    policy = posterior_policy(mixture, path.x, t)
    truth = analytic.flow_map(mixture, LINEAR)(path.x, t, s)
    ends = [policies.rollout(policy.velocity, path.x, t, s, n) for n in (512, 1024)]
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
        factory(raw[..., :shared], x, t)
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
    end = policies.rollout(policy.velocity, x, t, s, steps)
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


MEAN, SCALE = np.array([1.5, -0.5]), np.array([0.6, 1.7])


def straight_velocity(x, t, cond=None, /):
    """The velocity of the pairs x1 = m + S x0."""
    now = t[:, None]
    mean, scale = MEAN[None], SCALE[None]
    return mean + (scale - 1) * (x - now * mean) / (1 - now + now * scale)


def straight_maker(x, t, s, cond=None, /):
    raw = jnp.concatenate([straight_velocity(x, t), jnp.zeros((len(x), 2))], 1)
    return policies.momentum_policy(raw, x, t)


@pytest.mark.parametrize("grid", [(0.0, 1.0), (0.0, 0.3, 1.0)])
def test_momentum_is_exact_where_the_truth_is_straight(key, grid):
    x0 = jax.random.normal(key, (8, 2))
    u = policies.policy_step(straight_maker, steps=1)
    x1 = sampling.few_step(u, x0, grid=grid)
    np.testing.assert_allclose(x1, MEAN[None] + SCALE[None] * x0, rtol=1e-12)


def test_policy_step_samples_segment_by_segment(key):
    mixture = MIXTURES["gaussian"]()
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


# Imitation ----------------------------------------------------------------------------


def imitation_problem(key, name="three_modes", batch=8):
    mixture = MIXTURES[name]()
    t, s = objectives.segment_pairs(key, batch, grid=(0.0, 0.3, 1.0))
    return mixture, starts(key, mixture, t, batch=batch), s


def imitate(make_policy, path, s, **options):
    return objectives.policy_imitation(
        jax.random.key(7), make_policy, path, s, substeps=8, **options
    )


def shifted_maker(mixture, theta):
    def make(x, t, s, cond=None, /):
        policy = posterior_policy(mixture, x, t)
        return policy._replace(means=policy.means + theta)

    return make


@pytest.mark.parametrize("name", MIXTURES)
def test_imitation_vanishes_at_the_exact_posterior_only(key, name):
    mixture, path, s = imitation_problem(key, name)
    teacher = analytic.velocity(mixture, LINEAR)

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def problem(theta, ratio):
        maker = shifted_maker(mixture, theta)
        loss = imitate(maker, path, s, velocity=teacher, teacher_ratio=ratio)
        return loss.sum(), loss

    for ratio in (0.0, 0.6, 1.0):
        gradient, loss = problem(0.0, ratio)
        assert loss.shape == (8,)
        np.testing.assert_allclose(loss, 0, atol=1e-20)
        np.testing.assert_allclose(gradient, 0, atol=1e-10)
        gradient, loss = problem(0.1, ratio)
        assert loss.min() > 1e-6
        assert gradient > 1e-2


@pytest.mark.parametrize("states", [1, 4])
def test_visited_states_lie_on_the_trajectory_at_their_times(key, states):
    """The teacher agrees with the policy on its own line, and nowhere else."""
    raw = jax.random.normal(key, (8, 4))
    _, path, s = imitation_problem(key)

    def teacher(x, t, cond=None, /):
        line = path.x + (t - path.t)[:, None] * raw[:, :2]
        return raw[:, :2] + 20 * (x - line)

    def maker(x, t, s, cond=None, /):
        return policies.momentum_policy(raw, x, t)

    run = jax.jit(partial(imitate, maker, path, s, velocity=teacher, states=states))
    for ratio in (0.0, 0.4, 1.0):
        np.testing.assert_allclose(run(teacher_ratio=ratio), 0, atol=1e-24)


def test_with_ratio_one_the_teacher_leads(key):
    _, path, s = imitation_problem(key)
    slope = jax.random.normal(key, path.x.shape)

    def teacher(x, t, cond=None, /):
        line = path.x + (t - path.t)[:, None] * slope
        return slope + 20 * (x - line)

    def still(x, t, s, cond=None, /):
        return policies.momentum_policy(jnp.zeros((len(x), 4)), x, t)

    run = jax.jit(partial(imitate, still, path, s, velocity=teacher, states=3))
    np.testing.assert_allclose(
        run(teacher_ratio=1.0), jnp.square(slope).mean(1), rtol=1e-10
    )
    assert jnp.abs(run(teacher_ratio=0.0) - jnp.square(slope).mean(1)).min() > 1e-2


def test_times_of_the_visits_fill_the_segment(key):
    _, path, s = imitation_problem(key, batch=512)
    for ratio in (0.0, 0.5, 1.0):
        visits, departures = objectives._itinerary(key, path.t, s, 3, ratio)
        shares = (visits - path.t[None]) / (s - path.t)[None]
        assert (shares >= 0).all()
        assert (shares <= 1).all()
        assert (jnp.diff(shares, axis=0) >= 0).all()
        assert (departures >= visits).all()
        assert (departures[:-1] <= visits[1:]).all()
        # Means of three sorted uniforms, the teacher's a visit behind.
        expected = (1 - ratio) * np.array([1, 2, 3]) / 4 + ratio * np.arange(3) / 4
        np.testing.assert_allclose(shares.mean(1), expected, atol=0.03)


def network_maker(params, calls=None):
    def make(x, t, s, cond=None, /):
        if calls is not None:
            calls.append(1)
        inputs = jnp.concatenate([x, t[:, None], s[:, None]], 1)
        return policies.gaussian_mixture_policy(jnp.sin(inputs @ params), x, t)

    return make


def test_gradient_is_that_of_a_regression_at_fixed_states(key):
    mixture, path, s = imitation_problem(key)
    teacher = analytic.velocity(mixture, LINEAR)
    params = jax.random.normal(key, (4, 7))

    def loss(params, leader, scale):
        def scaled(x, t, cond=None, /):
            return scale * teacher(x, t)

        def behaviour(policy):
            return network_maker(leader)(path.x, path.t, s)

        return imitate(
            network_maker(params),
            path,
            s,
            velocity=scaled,
            teacher_ratio=0.3,
            behaviour=None if leader is None else behaviour,
        ).sum()

    one = jnp.ones(())
    own, of_teacher = jax.jit(jax.grad(loss, (0, 2)))(params, None, one)
    regression, of_leader = jax.jit(jax.grad(loss, (0, 1)))(params, params, one)
    assert jnp.abs(own).max() > 1e-2
    np.testing.assert_allclose(own, regression, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(of_leader, jnp.zeros_like(params))
    np.testing.assert_array_equal(of_teacher, 0.0)


def test_imitation_needs_one_forward_pass_of_the_student(key):
    mixture, path, s = imitation_problem(key)
    calls = []
    maker = network_maker(jax.random.normal(key, (4, 7)), calls)
    teacher = analytic.velocity(mixture, LINEAR)
    jax.jit(lambda path: imitate(maker, path, s, velocity=teacher, states=4))(path)
    assert len(calls) == 1


def test_imitation_takes_any_penalty_and_a_traced_ratio(key):
    mixture, path, s = imitation_problem(key)
    teacher = analytic.velocity(mixture, LINEAR)
    maker = network_maker(jax.random.normal(key, (4, 7)))
    run = partial(imitate, maker, path, s, velocity=teacher)
    loss, metrics = jax.jit(partial(run, penalty=diagnosed()))(teacher_ratio=0.25)
    np.testing.assert_allclose(loss, jax.jit(run)(teacher_ratio=0.25), rtol=1e-10)
    assert metrics["residual"].shape == (8,)


def test_rows_of_the_imitation_are_independent(key):
    mixture, path, s = imitation_problem(key)
    teacher = analytic.velocity(mixture, LINEAR)
    maker = network_maker(jax.random.normal(key, (4, 7)))
    run = jax.jit(partial(imitate, maker, velocity=teacher))
    loss, other = run(path, s), run(path._replace(x=path.x.at[0].add(1.0)), s)
    np.testing.assert_allclose(other[1:], loss[1:], rtol=1e-12)
    assert jnp.abs(other[0] - loss[0]) > 1e-6


def test_segments_are_drawn_as_often_as_they_are_long(key):
    t, s = objectives.segment_pairs(key, 4000, grid=(0.0, 0.25, 0.75, 1.0))
    drawn = jnp.stack([t, s], 1)
    for start, end in ((0, 0.25), (0.25, 0.75), (0.75, 1)):
        share = (drawn == jnp.array([[start, end]])).all(1).mean()
        np.testing.assert_allclose(share, end - start, atol=0.02)
    with pytest.raises(ValueError, match="must increase"):
        objectives.segment_pairs(key, 4, grid=(1.0, 0.0))


def test_bad_options_are_named(key, untyped):
    mixture, path, s = imitation_problem(key)
    teacher = analytic.velocity(mixture, LINEAR)
    run = partial(imitate, exact_maker(mixture), path, velocity=teacher)
    with pytest.raises(ValueError, match="`states` must be at least 1; got 0"):
        run(s=s, states=0)
    with pytest.raises(ValueError, match="`s` must have shape"):
        run(s=s[:3])
    with pytest.raises(ValueError, match="`steps` must be at least 1"):
        policies.policy_average(posterior_policy(mixture, path.x, path.t), steps=0)
    with pytest.raises(ValueError, match=r"`ratio` must lie in \[0, 2\]"):
        objectives.accelerated_line(2.5)
    with pytest.raises(ValueError, match=r"`rate` must lie in \[0, 1\)"):
        policies.drop_components(key, straight_maker(path.x, path.t, s), rate=1.0)


# Constant acceleration ----------------------------------------------------------------


def straight_pairs(key, batch=16):
    key_noise, key_time = jax.random.split(key)
    x0 = jax.random.normal(key_noise, (batch, 2))
    x1 = jnp.asarray(MEAN[None] + SCALE[None] * x0)
    t = jax.random.uniform(key_time, (batch,))
    unread = jnp.full_like(x0, jnp.nan)
    return Path(unread, t, unread, x0, x1)


def straight_line(x, t, ratio):
    """``x1 - x0`` of the pair whose accelerated line passes through x at t."""
    alpha = expand_like(objectives.accelerated_line(ratio).alpha(t), x)
    x0 = (x - alpha * MEAN[None]) / (1 - alpha + alpha * SCALE[None])
    return MEAN[None] + (SCALE[None] - 1) * x0


def true_v0(x, t, cond=None, /, *, ratio):
    return ratio * straight_line(x, t, ratio)


def true_acceleration(x, t, v0, cond=None, /, *, ratio):
    return (2 - 2 * ratio) * straight_line(x, t, ratio)


@pytest.mark.parametrize("ratio", [0.0, 1.0, 1.5, 2.0])
def test_accelerated_line(key, ratio):
    line, pairs = objectives.accelerated_line(ratio), straight_pairs(key)
    t, way = pairs.t[:, None], pairs.x1 - pairs.x0
    path = interpolants.sample_path(line, pairs.x0, pairs.x1, pairs.t)
    start = ratio * way
    expected = (1 - t**2) * pairs.x0 + t**2 * pairs.x1 + start * (t - t**2)
    np.testing.assert_allclose(path.x, expected, atol=1e-14)
    np.testing.assert_allclose(path.v, start + 2 * (way - start) * t, atol=1e-13)
    for end, value in ((0.0, 0.0), (1.0, 1.0)):
        t = jnp.asarray(end)
        assert (line.alpha(t), line.sigma(t)) == (value, 1 - value)


@pytest.mark.parametrize("ratio", [0.8, 1.5])
def test_constant_acceleration_is_exact_on_straight_pairs(key, ratio):
    path = straight_pairs(key)
    v0 = partial(true_v0, ratio=ratio)
    a = partial(true_acceleration, ratio=ratio)
    first = partial(objectives.constant_acceleration_velocity, path=path, ratio=ratio)
    second = partial(objectives.constant_acceleration, path=path, velocity=v0)
    np.testing.assert_allclose(first(v0), 0, atol=1e-24)
    np.testing.assert_allclose(second(a), 0, atol=1e-24)
    assert first(lambda *args: 1.1 * v0(*args)).min() > 1e-4
    assert second(lambda *args: a(*args) + 0.1).min() > 5e-3


@pytest.mark.parametrize("error", [0.0, 0.3])
@pytest.mark.parametrize("grid", [(0.0, 1.0), (0.0, 0.2, 0.9, 1.0)])
def test_constant_acceleration_steps_are_exact(key, grid, error):
    """Also from a wrong initial velocity, which the acceleration makes good."""
    path = straight_pairs(key)

    def v0(x, t, cond=None, /):
        return true_v0(x, t, ratio=1.5) + error

    def a(x, t, v, cond=None, /):
        return 2 * (path.x1 - path.x0 - v)

    loss = objectives.constant_acceleration(a, path, velocity=v0)
    np.testing.assert_allclose(loss, 0, atol=1e-24)
    u = objectives.constant_acceleration_field(a, v0(path.x0, jnp.zeros(16)))
    x1 = sampling.few_step(u, path.x0, grid=grid)
    np.testing.assert_allclose(x1, path.x1, rtol=1e-12)


def test_second_stage_sees_the_points_of_the_learned_velocity(key):
    path = straight_pairs(key)

    def v0(x, t, cond=None, /):
        assert not jnp.isnan(x).any()
        return jnp.ones_like(x) + x + expand_like(t, x)

    start, t = 1 + path.x0, path.t[:, None]
    point = (1 - t**2) * path.x0 + t**2 * path.x1 + start * (t - t**2)

    def a(x, t, v, cond=None, /):
        np.testing.assert_allclose(x, point, rtol=1e-12)
        np.testing.assert_allclose(v, start, rtol=1e-12)
        np.testing.assert_array_equal(t, path.t)
        return jnp.zeros_like(x)

    loss = objectives.constant_acceleration(a, path, velocity=v0)
    expected = jnp.square(2 * (path.x1 - path.x0 - start)).mean(1)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


def test_no_gradient_reaches_the_first_stage(key):
    path = straight_pairs(key)

    def loss(scale):
        def v0(x, t, cond=None, /):
            return scale * true_v0(x, t, ratio=1.5)

        def a(x, t, v, cond=None, /):
            return x + v

        return objectives.constant_acceleration(a, path, velocity=v0).sum()

    assert jax.grad(loss)(jnp.asarray(1.1)) == 0


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
