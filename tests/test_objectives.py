"""Every objective is stationary at the closed-form field, and nowhere else."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import analytic, interpolants, objectives, weights
from flowjax.events import expand_like
from flowjax.fields import diagonal, total_derivative
from flowjax.interpolants import Path
from flowjax.objectives.penalties import adaptive, weighted
from flowjax.row_groups import row_layout
from tests.comparing import assert_trees_close
from tests.quadrature import joint_quadrature, smooth_features
from tests.random_problem import network, random_problem
from tests.tables import INTERPOLANTS, LINE, MIXTURES

pytestmark = pytest.mark.usefixtures("x64")


def flow_matching(u, path, s):
    return objectives.flow_matching(diagonal(u), path)


def weighted_flow_matching(u, path, s):
    weight = weights.prediction_weight(interpolants.linear(), "x1")
    return objectives.flow_matching(diagonal(u), path, penalty=weighted(weight))


def wrong_sign(u, path, s):
    """MeanFlow with the derivative's sign flipped, the mistake the laws must catch."""
    prediction, derivative = total_derivative(u, path.x, path.t, s, path.v, path.cond)
    target = path.v - expand_like(s - path.t, path.x) * derivative
    return jnp.square(prediction - jax.lax.stop_gradient(target)).mean(1)


OBJECTIVES = {
    "flow_matching": flow_matching,
    "weighted_flow_matching": weighted_flow_matching,
    "mean_flow": objectives.mean_flow,
}


def gradient(objective, mixture, interpolant, *, marginal=False):
    """Gradients of the exact expected loss at some ``thetas`` and (t, s).

    One program for all times, and one evaluation of the truth for all ``thetas``.
    """
    u = analytic.average_velocity(mixture, interpolant)

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None, None, None))
    @jax.grad
    def expected(theta, path, weights, end):
        def field(x, t, s, cond=None):
            return u(x, t, s) + jnp.tensordot(theta, smooth_features(x, t, s), 1)

        return jnp.sum(weights * objective(field, path, end))

    def slope(thetas, t, s):
        # The truth is stationary at every x alone: few of them show it as exactly.
        path, weights = joint_quadrature(mixture, interpolant, t, nodes=(40, 4))
        if marginal:
            v = analytic.velocity(mixture, interpolant)(path.x, path.t)
            path = path._replace(v=v)
        return expected(thetas, path, weights, jnp.full_like(path.t, s))

    return slope


AT_TRUTH, OFF = np.zeros((1, 7)), np.full((1, 7), 0.1)


@pytest.mark.parametrize("mixture", LINE)
@pytest.mark.parametrize("interpolant", INTERPOLANTS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradient_vanishes_at_the_truth_only(objective, interpolant, mixture):
    slope = gradient(
        OBJECTIVES[objective], MIXTURES[mixture](), INTERPOLANTS[interpolant]()
    )
    for t, s in ((0.3, 0.3), (0.2, 0.7), (0.5, 0.95), (0.8, 0.4)):
        at_truth, off = slope(np.concatenate([AT_TRUTH, OFF]), t, s)
        np.testing.assert_allclose(at_truth, 0, atol=1e-10, err_msg=f"{t} to {s}")
        assert jnp.abs(off).max() > 1e-2, (t, s)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("mixture", LINE)
def test_with_the_marginal_velocity_every_weight_has_its_zero(mixture, power):
    objective = partial(objectives.mean_flow, penalty=adaptive(power=power))
    linear = interpolants.linear()
    slope = gradient(objective, MIXTURES[mixture](), linear, marginal=True)
    grad = slope(AT_TRUTH, 0.2, 0.7)
    np.testing.assert_allclose(grad, 0, atol=1e-9)


def test_adaptive_weight_with_conditional_velocity_is_biased_on_a_mixture():
    linear = interpolants.linear()
    objective = partial(objectives.mean_flow, penalty=adaptive(power=1.0))
    biased, symmetric = (
        gradient(objective, MIXTURES[name](), linear)(AT_TRUTH, 0.3, 0.3)
        for name in ("two_modes", "gaussian")
    )
    assert jnp.abs(biased).max() > 0.05
    np.testing.assert_allclose(symmetric, 0, atol=1e-11)


@pytest.mark.parametrize("mixture", LINE)
def test_negative_control_a_flipped_sign_is_seen(mixture):
    linear = interpolants.linear()
    grad = gradient(wrong_sign, MIXTURES[mixture](), linear)(AT_TRUTH, 0.2, 0.7)
    assert jnp.abs(grad).max() > 0.5


@pytest.mark.parametrize("std", [0.3, 1.0, 2.0])
def test_flow_matching_floor_is_pi_std_over_2(std):
    mixture = analytic.gaussian(jnp.array([1.0]), jnp.array([std]))
    linear = interpolants.linear()
    v = analytic.velocity(mixture, linear)
    nodes, weights = np.polynomial.legendre.leggauss(60)
    total = 0.0
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        path, w = joint_quadrature(mixture, linear, float(node))
        total += weight * jnp.sum(w * objectives.flow_matching(v, path))
    np.testing.assert_allclose(total, np.pi * std / 2, rtol=1e-10)


def value_and_grad(objective, params, path, s):
    def loss(params):
        losses = objective(partial(network, params), path, s)
        return losses.mean(), losses

    (_, losses), grad = jax.value_and_grad(loss, has_aux=True)(params)
    return losses, grad


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_sparing_equal_rows_the_derivative_changes_nothing(key, share, power):
    problem = random_problem(key, share_equal=share)
    full = partial(objectives.mean_flow, penalty=adaptive(power=power))
    split = partial(full, share_equal=share)
    assert_trees_close(
        value_and_grad(full, *problem), value_and_grad(split, *problem), rtol=1e-12
    )


def test_equal_rows_that_are_not_equal_give_nan(key):
    params, path, s = random_problem(key, share_equal=0.0)
    losses = objectives.mean_flow(partial(network, params), path, s, share_equal=0.75)
    broken = jnp.arange(8) % 4 < 3
    np.testing.assert_array_equal(jnp.isnan(losses), broken)


def test_on_the_diagonal_mean_flow_is_flow_matching(key):
    params, path, _ = random_problem(key)
    mean = value_and_grad(objectives.mean_flow, params, path, path.t)
    plain = value_and_grad(flow_matching, params, path, path.t)
    assert_trees_close(mean, plain, rtol=1e-12)


def test_agrees_with_the_paper_on_the_paper_clock(key):
    """The loss as printed, with noise at 1 and u_p(z, r, t) = -u(z, 1 - t, 1 - r)."""
    params, path, s = random_problem(key, share_equal=0.0)
    power, offset = 0.75, 1e-2

    def paper(u, path, s):
        t_paper, r_paper = 1 - path.t, 1 - s
        velocity = path.x0 - path.x1

        def u_paper(z, r, t):
            return -u(z, 1 - t, 1 - r)

        primal, derivative = jax.jvp(
            u_paper,
            (path.x, r_paper, t_paper),
            (velocity, jnp.zeros_like(t_paper), jnp.ones_like(t_paper)),
        )
        target = velocity - expand_like(t_paper - r_paper, path.x) * derivative
        square = jnp.sum((primal - jax.lax.stop_gradient(target)) ** 2, 1)
        return square * jax.lax.stop_gradient((square + offset) ** -power)

    ours = partial(objectives.mean_flow, penalty=adaptive(power=power, offset=offset))
    dim = path.x.shape[1]
    scaled = lambda *args: ours(*args) * dim ** (1 - power)  # noqa: E731
    assert_trees_close(
        value_and_grad(paper, params, path, s),
        value_and_grad(scaled, params, path, s),
        rtol=1e-11,
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_row_does_not_depend_on_its_neighbours(key, objective):
    params, path, s = random_problem(key)
    u = partial(network, params)
    whole = OBJECTIVES[objective](u, path, s)
    row = OBJECTIVES[objective](u, *jax.tree.map(lambda a: a[2:3], (path, s)))
    np.testing.assert_allclose(whole[2:3], row, rtol=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_jit_changes_nothing(key, objective):
    params, path, s = random_problem(key)
    u = partial(network, params)
    plain = OBJECTIVES[objective](u, path, s)
    compiled = jax.jit(partial(OBJECTIVES[objective], u))(path, s)
    np.testing.assert_allclose(plain, compiled, rtol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_tangent_is_a_field_or_its_values_of_jax_or_numpy(key, share):
    params, path, s = random_problem(key, share_equal=share)

    def losses(tangent):
        return value_and_grad(
            partial(objectives.mean_flow, tangent=tangent, share_equal=share),
            params,
            path,
            s,
        )

    by_field = losses(lambda x, t, cond=None: jnp.sin(x))
    for values in (jnp.sin(path.x), np.sin(path.x), np.sin(path.x).astype(np.float16)):
        tolerance = {"rtol": 1e-2, "atol": 1e-2} if values.itemsize < 4 else {}
        assert_trees_close(losses(values), by_field, **tolerance)
    assert np.abs(losses(None)[0] - by_field[0]).max() > 0.1


def test_target_and_its_velocity_carry_no_gradient(key):
    params, path, s = random_problem(key)

    def loss(v):
        u = partial(network, params)
        return objectives.mean_flow(u, path._replace(v=v), s, share_equal=0.75).mean()

    np.testing.assert_array_equal(jax.grad(loss)(path.v), 0)


@pytest.mark.parametrize("prediction", ["velocity", "x1", "x0", "score"])
@pytest.mark.parametrize("interpolant", INTERPOLANTS)
def test_prediction_weight_turns_velocity_error_into_that_of(interpolant, prediction):
    from flowjax.fields import convert

    member = INTERPOLANTS[interpolant]()
    t = jnp.array([0.2, 0.6, 0.9])
    x, v, error = jax.random.normal(jax.random.key(1), (3, 3, 5))
    bound = partial(convert, x=x, t=t, interpolant=member, source="velocity")
    moved = bound(v + error, target=prediction) - bound(v, target=prediction)
    weight = weights.prediction_weight(member, prediction)(t)
    np.testing.assert_allclose(weight * (error**2).sum(1), (moved**2).sum(1), rtol=1e-9)


def test_likelihood_weight_of_the_linear_path():
    t = jnp.array([0.1, 0.5, 0.9])
    weight = weights.likelihood_weight(interpolants.linear())(t)
    np.testing.assert_allclose(weight, t / (1 - t), rtol=1e-12)


def nnx_field(key, dim):
    from flax import nnx

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(dim + 2, 16, rngs=rngs, param_dtype=jnp.float64)
            self.out = nnx.Linear(16, dim, rngs=rngs, param_dtype=jnp.float64)

        def __call__(self, x, t, s, cond=None):
            inputs = jnp.concatenate([x, expand_like(t, x), expand_like(s, x)], 1)
            return self.out(jnp.tanh(self.hidden(inputs)))

    graph, params = nnx.split(Network(nnx.Rngs(0)))
    return params, lambda params, *args: nnx.merge(graph, params)(*args)


def equinox_field(key, dim):
    import equinox as eqx

    mlp = eqx.nn.MLP(dim + 2, dim, 16, 1, activation=jnp.tanh, key=key)
    params, static = eqx.partition(mlp, eqx.is_inexact_array)

    def apply(params, x, t, s, cond=None):
        inputs = jnp.concatenate([x, expand_like(t, x), expand_like(s, x)], 1)
        return jax.vmap(eqx.combine(params, static))(inputs)

    return params, apply


@pytest.mark.parametrize("make", [nnx_field, equinox_field])
def test_modules_of_other_libraries_train_alike(key, make):
    params, apply = make(key, 3)
    _, path, s = random_problem(key)

    def loss(params, share):
        u = partial(apply, params)
        return objectives.mean_flow(u, path, s, share_equal=share).mean()

    split, full = (jax.value_and_grad(loss)(params, share) for share in (0.75, 0.0))
    assert_trees_close(split, full, rtol=1e-9)
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(split[1]))


@pytest.mark.parametrize(
    ("share", "batch", "message"),
    [
        (0.75, 6, "multiple of 4"),
        (1.5, 8, r"in \[0, 1\]"),
        (2**-0.5, 8, "denominator"),
    ],
)
def test_a_share_that_does_not_fit_is_refused(share, batch, message):
    with pytest.raises(ValueError, match=message):
        row_layout(batch, share)


@pytest.mark.usefixtures("untyped")
def test_bad_destination_times_are_refused(key):
    params, path, s = random_problem(key)
    u = partial(network, params)
    with pytest.raises(ValueError, match=r"`s` must have shape \[batch\]=\(8,\)"):
        objectives.mean_flow(u, path, s[:, None])
    with pytest.raises(ValueError, match=r"`s` must lie in \[0, 1\]"):
        objectives.mean_flow(u, path, s + 1)


def test_path_is_one_pytree_with_batch_first(key):
    _, path, _ = random_problem(key)
    assert isinstance(jax.tree.map(lambda a: a[:4], path), Path)
    assert {len(leaf) for leaf in jax.tree.leaves(path)} == {8}
