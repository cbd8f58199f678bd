"""The laws of the family: every member of the table, every law."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import analytic, interpolants, objectives
from flowjax.objectives import penalties
from flowjax.training import data_mesh
from tests.comparing import assert_trees_close
from tests.members import BIASED, MEMBERS, mean_flow, truth_of
from tests.quadrature import joint_quadrature, smooth_features
from tests.random_problem import network, random_problem
from tests.tables import INTERPOLANTS, MIXTURES

pytestmark = pytest.mark.usefixtures("x64")

# TrigFlow lives on its own path; the other consistency members on any.
PATHS: dict[str, tuple[str, ...]] = {
    name: ("linear", "trigonometric") for name in MEMBERS
}
PATHS["continuous_consistency"] = ("trigonometric",)


def gradient(loss, mixture, interpolant, t, s, *thetas, marginal):
    """Gradient of the exact expected loss at each ``theta``; compiled once."""
    truth = truth_of(mixture, interpolant)
    path, weights = joint_quadrature(mixture, interpolant, t, nodes=(160, 4))
    if marginal:
        path = path._replace(v=truth.v(path.x, path.t))
    end = jnp.full_like(path.t, s)

    @jax.jit
    @jax.grad
    def expected(theta):
        def field(x, t, s, cond=None):
            return truth.u(x, t, s) + jnp.tensordot(theta, smooth_features(x, t, s), 1)

        return jnp.sum(weights * loss(field, path, end, truth))

    return [expected(theta) for theta in thetas]


CASES = [
    pytest.param(name, path, marginal, id=f"{name}-{path}-{velocity}")
    for name, member in MEMBERS.items()
    for path in PATHS[name]
    for velocity, marginal in (("marginal", True), ("conditional", False))
    if marginal or member.conditional
]


@pytest.mark.parametrize(("name", "path", "marginal"), CASES)
def test_gradient_vanishes_at_the_truth_only(name, path, marginal):
    member = MEMBERS[name]
    times = (0.3, 1.0) if member.to_data else (0.25, 0.75)
    at_truth, off = gradient(
        member.loss,
        MIXTURES["two_modes"](),
        INTERPOLANTS[path](),
        *times,
        jnp.zeros(7),
        jnp.zeros(7) + 0.1,  # a weak dtype would compile again
        marginal=marginal,
    )
    np.testing.assert_allclose(at_truth, 0, atol=1e-8)
    assert jnp.abs(off).max() > 1e-3


@pytest.mark.parametrize("name", [n for n, m in MEMBERS.items() if not m.to_data])
def test_backward_intervals_obey_the_same_law(name):
    (grad,) = gradient(
        MEMBERS[name].loss,
        MIXTURES["gaussian"](),
        interpolants.linear(),
        0.75,
        0.25,
        jnp.zeros(7),
        marginal=True,
    )
    np.testing.assert_allclose(grad, 0, atol=1e-8)


@pytest.mark.parametrize("name", BIASED)
def test_finite_steps_are_off_by_their_order(name):
    mixture, linear = MIXTURES["two_modes"](), interpolants.linear()
    end = 1.0 if name == "velocity_matching" else 0.75
    bias = [
        jnp.linalg.norm(
            *gradient(
                BIASED[name](step),
                mixture,
                linear,
                0.25,
                end,
                jnp.zeros(7),
                marginal=True,
            )
        )
        for step in (1e-2, 1e-3)
    ]
    assert 8 < bias[0] / bias[1] < 12
    assert bias[0] > 1e-4


def test_improved_mean_flow_ends_at_the_floor_of_flow_matching():
    """With the marginal tangent the compound prediction is the velocity itself."""
    mixture, linear = MIXTURES["two_modes"](), interpolants.linear()
    truth = truth_of(mixture, linear)
    path, weights = joint_quadrature(mixture, linear, 0.3)
    end = jnp.full_like(path.t, 0.8)
    losses = objectives.improved_mean_flow(truth.u, truth.v, path, end)
    floor = objectives.flow_matching(truth.v, path)
    np.testing.assert_allclose(
        jnp.sum(weights * losses), 2 * jnp.sum(weights * floor), rtol=1e-10
    )


@pytest.mark.parametrize("stop", ["velocity", "nothing", "advection"])
def test_a_gradient_through_the_derivative_needs_a_marginal_velocity(stop):
    (grad,) = gradient(
        mean_flow(stop=stop),
        MIXTURES["two_modes"](),
        interpolants.linear(),
        0.3,
        0.9,
        jnp.zeros(7),
        marginal=False,
    )
    assert (jnp.abs(grad).max() > 0.1) == (stop != "advection")


def swapped_sign(u, path, s, truth):
    """The Lagrangian identity with the derivative's sign flipped."""
    return objectives.lagrangian(
        lambda x, t, s, cond=None: u(x, t, 2 * t - s, cond),
        path,
        s,
        velocity=truth.v,
    )


def swapped_fraction(u, path, s, truth):
    """The semigroup with the weights of its two jumps exchanged."""
    from flowjax.fields import flow_map

    t, f = path.t, 0.3
    m = t + f * (s - t)
    middle = flow_map(u)(path.x, t, m)
    target = (1 - f) * u(path.x, t, m) + f * u(middle, m, s)
    return jnp.square(u(path.x, t, s) - jax.lax.stop_gradient(target)).mean(1)


@pytest.mark.parametrize("mistake", [swapped_sign, swapped_fraction])
def test_negative_controls_are_seen(mistake):
    (grad,) = gradient(
        mistake,
        MIXTURES["two_modes"](),
        interpolants.linear(),
        0.25,
        0.75,
        jnp.zeros(7),
        marginal=True,
    )
    assert jnp.abs(grad).max() > 1e-2


@pytest.mark.usefixtures("untyped")
# The field of the consistency member is made here, of the right shape.
@pytest.mark.parametrize(
    "name", sorted({*MEMBERS, *BIASED} - {"continuous_consistency"})
)
def test_a_field_whose_output_only_broadcasts_is_refused(key, name):
    """It would train to the mean of the batch, or of the event, without a word."""
    _, path, s = random_problem(key, share_equal=0.0)
    loss = MEMBERS[name].loss if name in MEMBERS else BIASED[name](0.01)
    truth = truth_of(analytic.gaussian(jnp.zeros(3), 1.0), interpolants.linear())

    def u(x, t, s, cond=None):
        return x[:, :1] * t[:, None]

    s = jnp.ones_like(s) if name in MEMBERS and MEMBERS[name].to_data else s
    with pytest.raises(
        ValueError, match=r"`(u|v|target)` must return shape .*; got \(\d+, 1\)"
    ):
        jax.eval_shape(lambda: loss(u, path, s, truth))


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_alpha_flow_agrees_with_the_paper(key, alpha):
    """On its clock, with its weight alpha / (l + c), up to the offset's unit."""
    params, path, s = random_problem(key, share_equal=0.0)
    offset, dim = 1e-3, path.x.shape[1]

    def paper(params):
        t_paper, r_paper = 1 - path.t, 1 - s
        velocity = path.x0 - path.x1

        def u_paper(z, r, t):
            return -network(params, z, 1 - t, 1 - r)

        middle = alpha * r_paper + (1 - alpha) * t_paper
        z = path.x - (t_paper - middle)[:, None] * velocity
        target = alpha * velocity + (1 - alpha) * u_paper(z, r_paper, middle)
        target = jax.lax.stop_gradient(target)
        square = jnp.mean((u_paper(path.x, r_paper, t_paper) - target) ** 2, 1)
        return (square * jax.lax.stop_gradient(alpha / (square + offset))).mean()

    def ours(params):
        weight = penalties.adaptive(power=1.0, offset=offset / alpha**2 * dim)
        u = partial(network, params)
        losses = objectives.alpha_flow(u, path, s, alpha, penalty=weight, clip=None)
        return losses.mean()

    assert_trees_close(jax.grad(ours)(params), jax.grad(paper)(params), rtol=1e-9)


@pytest.mark.parametrize("name", MEMBERS)
def test_rows_are_independent_and_sharded_jit_changes_nothing(key, name):
    member = MEMBERS[name]
    params, path, s = random_problem(key, share_equal=0.0)
    s = jnp.ones_like(s) if member.to_data else s
    truth = truth_of(
        analytic.gaussian(jnp.array([1.5] * 3), jnp.array([0.6] * 3)),
        interpolants.linear(),
    )
    u = partial(network, params)
    whole = member.loss(u, path, s, truth)
    row = jax.tree.map(lambda a: a[2:3], (path, s))
    np.testing.assert_allclose(whole[2:3], member.loss(u, *row, truth), rtol=1e-9)
    sharding = jax.sharding.NamedSharding(data_mesh(), jax.P("data"))
    rows = jax.device_put((path, s), sharding)
    compiled = jax.jit(lambda path, s: member.loss(u, path, s, truth))(*rows)
    np.testing.assert_allclose(whole, compiled, rtol=1e-9)
