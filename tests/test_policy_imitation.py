"""The imitation of a teacher by policies: exact zeros, the states it visits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import analytic, interpolants, objectives, policies, times
from flowjax.objectives.penalties import diagnosed
from flowjax.objectives.policy_imitation import _itinerary
from tests.policy_problems import (
    LINEAR,
    MIXTURES,
    exact_maker,
    posterior_policy,
    starts,
    straight_maker,
)

pytestmark = pytest.mark.usefixtures("x64")


def imitation_problem(key, name="three_modes_plane", batch=8):
    mixture = MIXTURES[name]()
    t, s = times.segment_pairs(key, batch, grid=(0.0, 0.3, 1.0))
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
        visits, departures = _itinerary(key, path.t, s, 3, ratio)
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
    t, s = times.segment_pairs(key, 4000, grid=(0.0, 0.25, 0.75, 1.0))
    drawn = jnp.stack([t, s], 1)
    for start, end in ((0, 0.25), (0.25, 0.75), (0.75, 1)):
        share = (drawn == jnp.array([[start, end]])).all(1).mean()
        np.testing.assert_allclose(share, end - start, atol=0.02)
    with pytest.raises(ValueError, match="must increase"):
        times.segment_pairs(key, 4, grid=(1.0, 0.0))


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
        interpolants.accelerated_line(2.5)
    with pytest.raises(ValueError, match=r"`rate` must lie in \[0, 1\)"):
        policies.drop_components(key, straight_maker(path.x, path.t, s), rate=1.0)
