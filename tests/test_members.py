"""The laws of the family: every member of the table, every law."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import analytic, interpolants, objectives
from flowjax.fields import chained, diagonal, euler
from flowjax.objectives import penalties
from flowjax.training import data_mesh
from tests.members import BIASED, MEMBERS, mean_flow, truth_of
from tests.quadrature import joint_quadrature, smooth_features
from tests.test_objectives import (
    INTERPOLANTS,
    MIXTURES,
    assert_trees_close,
    network,
    random_problem,
)

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


def straight_pairs(key, batch=64, std=0.6, mean=1.5):
    """Deterministic pairs x1 = mean + std x0, whose marginal flow is straight."""
    key_source, key_time = jax.random.split(key)
    x0 = jax.random.normal(key_source, (batch, 1))
    t = jax.random.uniform(key_time, (batch,))
    x1 = mean + std * x0
    path = interpolants.sample_path(interpolants.linear(), x0, x1, t)

    def v(x, t, cond=None):
        t = t[:, None]
        return mean + (std - 1) * (x - t * mean) / (1 - t + t * std)

    return path, v


STRAIGHT = {
    "flow_matching": lambda v, path, key: objectives.flow_matching(v, path),
    "mean_flow": lambda v, path, key: objectives.mean_flow(
        euler(v), path, (1 + path.t) / 2
    ),
    "snap_flow": lambda v, path, key: objectives.snap_flow(euler(v), path),
    "snap_flow_midpoint": lambda v, path, key: objectives.snap_flow(
        euler(v), path, midpoint=True
    ),
    "consistency_flow_matching": lambda v, path, key: (
        objectives.consistency_flow_matching(v, path, weight=1.0)
    ),
    "flow_guided_distillation": lambda v, path, key: (
        objectives.flow_guided_distillation(
            v, path, 0.2 + 0.6 * path.t, velocity=straight_pairs(key)[1]
        )
    ),
    "self_corrected_distillation": lambda v, path, key: (
        objectives.self_corrected_distillation(
            key,
            v,
            path,
            velocity=straight_pairs(key)[1],
            interpolant=interpolants.linear(),
        )
    ),
    "self_corrected_by_data_alone": lambda v, path, key: (
        objectives.self_corrected_distillation(
            key,
            v,
            path,
            velocity=straight_pairs(key)[1],
            interpolant=interpolants.linear(),
            truncation=1.0,
            backward_weight=0.0,
            correction_weight=0.0,
        )
    ),
}
"""Members whose truth is a straight, deterministic coupling."""


@pytest.mark.parametrize("name", STRAIGHT)
def test_straight_pairs_are_a_zero_and_nothing_else(key, name):
    path, v = straight_pairs(key)

    def loss(theta):
        def field(x, t, cond=None):
            return v(x, t) + theta * jnp.sin(x + t[:, None])

        return STRAIGHT[name](field, path, key)

    value, slope = jax.jvp(loss, (0.0,), (1.0,))
    np.testing.assert_allclose(value, 0, atol=1e-20)
    np.testing.assert_allclose(slope, 0, atol=1e-12)
    assert jax.grad(lambda theta: loss(theta).mean())(0.1) > 1e-7
    assert (loss(0.1) > 0).mean() > 0.9


def test_shortcut_is_off_at_its_finest_level_alone(key):
    truth = truth_of(MIXTURES["gaussian"](), interpolants.linear())
    x = jax.random.normal(key, (64, 1))
    for h, finest, largest in [(1 / 8, 128, 1e-14), (1 / 128, 128, 2e-2)]:
        t = jnp.full((64,), 0.25)
        path = interpolants.sample_path(interpolants.linear(), x, x, t)
        residual = objectives.shortcut(
            truth.u,
            path,
            t + 2 * h,
            share_equal=0.0,
            finest=finest,
            clip=None,
            penalty=lambda terms: terms.residual[:, 0],
        )
        size = jnp.sqrt(jnp.square(residual).mean())
        assert size < largest
        assert h > 1 / finest or size > 1e-3


def test_snap_flow_lands_on_the_map_of_two_euler_steps(key):
    """Its fixed point, not the flow map: the bias is that of the solver."""
    truth = truth_of(MIXTURES["gaussian"](), interpolants.linear())
    two_steps = chained(euler(truth.v), 2)

    def field(x, t, s, cond=None):
        jump = (s - t)[:, None] > 0.5
        return jnp.where(jump, two_steps(x, t, s), truth.v(x, t))

    x0 = jax.random.normal(key, (256, 1))
    path = interpolants.sample_path(interpolants.linear(), x0, x0, jnp.zeros(256))
    path = path._replace(v=truth.v(path.x, path.t))
    loss = partial(objectives.snap_flow, path=path)
    np.testing.assert_allclose(loss(field), 0, atol=1e-25)
    assert loss(truth.u).mean() > 1e-3
    bias = two_steps(x0, jnp.zeros(256), jnp.ones(256)) - truth.u(
        x0, jnp.zeros(256), jnp.ones(256)
    )
    # x0 is drawn by Monte Carlo: 256 draws of a linear map of a normal.
    np.testing.assert_allclose(jnp.sqrt(jnp.square(bias).mean()), 0.335, rtol=0.15)


def test_twin_flow_is_stationary_up_to_its_step(key):
    linear = interpolants.linear()
    truth = truth_of(MIXTURES["gaussian"](), linear)
    key_source, key_data, key_time, key_loss = jax.random.split(key, 4)
    x0 = jax.random.normal(key_source, (64, 1))
    x1 = 1.5 + 0.6 * jax.random.normal(key_data, (64, 1))
    t = jax.random.uniform(key_time, (64,))
    path = interpolants.sample_path(linear, x0, x1, t)
    path = path._replace(v=truth.v(path.x, t))

    def gradient_at(step):
        def loss(theta):
            def u(x, t, s, cond=None):
                return truth.u(x, t, s) + theta * jnp.cos(x)

            losses = objectives.twin_flow(
                key_loss,
                u,
                path,
                jnp.ones_like(t),
                interpolant=linear,
                fake=truth.v,
                step=step,
                penalty=penalties.mean_square,
            )
            # The fake branch is frozen here: its own loss adds a constant.
            return losses.mean()

        return jnp.abs(jax.grad(loss)(0.0))

    assert 7 < gradient_at(1e-2) / gradient_at(1e-3) < 13


def test_the_push_is_the_gap_between_the_fake_and_the_real_velocity(key):
    """A fake branch that lags behind moves the samples towards the real velocity."""
    x0 = jax.random.normal(key, (8, 1))

    def sample(theta, x, t, s, cond=None):
        return jnp.broadcast_to(theta, x.shape)

    def loss(theta):
        u = partial(sample, theta)
        return objectives.pushed(u, x0, jnp.full_like(x0, 0.3)).mean()

    np.testing.assert_allclose(jax.grad(loss)(1.0), 2 * 0.3)


def test_velocity_distillation_is_stationary_at_the_truth(key):
    linear = interpolants.linear()
    truth = truth_of(MIXTURES["gaussian"](), linear)
    key_source, key_noise, key_time = jax.random.split(key, 3)
    x0 = jax.random.normal(key_source, (64, 1))
    noise = jax.random.normal(key_noise, (64, 1))
    t = 0.9 * jax.random.uniform(key_time, (64,))

    def loss(theta):
        def u(x, t, s, cond=None):
            return truth.u(x, t, s) + theta * jnp.cos(x)

        from flowjax.fields import total_derivative

        return objectives.velocity_distillation(
            u,
            x0,
            noise,
            t,
            velocity=truth.v,
            interpolant=linear,
            derivative=total_derivative,
        )

    np.testing.assert_allclose(loss(0.0), 0, atol=1e-20)
    assert jnp.abs(jax.grad(lambda theta: loss(theta).mean())(0.2)) > 1e-3


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


FROZEN = {
    "mean_flow": lambda u, f, path, s, key: objectives.mean_flow(
        u, path, s, velocity=diagonal(f), tangent=diagonal(f), target=f
    ),
    "improved_mean_flow": lambda u, f, path, s, key: objectives.improved_mean_flow(
        u, diagonal(u), path, s, target=f
    ),
    "lagrangian": lambda u, f, path, s, key: objectives.lagrangian(
        u, path, s, velocity=diagonal(f)
    ),
    "align_your_flow": lambda u, f, path, s, key: objectives.align_your_flow(
        u, path, s, velocity=diagonal(f), form="lagrangian"
    ),
    "semigroup": lambda u, f, path, s, key: objectives.semigroup(
        u, path, s, first=f, second=f
    ),
    "shortcut": lambda u, f, path, s, key: objectives.shortcut(
        u, path, s, target=f, share_equal=0.0
    ),
    "alpha_flow": lambda u, f, path, s, key: objectives.alpha_flow(
        u, path, s, 0.5, second=f
    ),
    "anchored_consistency": lambda u, f, path, s, key: objectives.anchored_consistency(
        u, path, target=f
    ),
    "trajectory_distillation": lambda u, f, path, s, key: (
        objectives.trajectory_distillation(
            u, path, s, velocity=diagonal(f), trajectory=chained(f, 2), target=f
        )
    ),
    "flow_guided_distillation": lambda u, f, path, s, key: (
        objectives.flow_guided_distillation(
            diagonal(u), path, s / 2, velocity=diagonal(f)
        )
    ),
    "self_corrected_distillation": lambda u, f, path, s, key: (
        objectives.self_corrected_distillation(
            key,
            diagonal(u),
            path,
            velocity=diagonal(f),
            target=diagonal(f),
            interpolant=interpolants.linear(),
        )
    ),
    "consistency_flow_matching": lambda u, f, path, s, key: (
        objectives.consistency_flow_matching(diagonal(u), path, target=diagonal(f))
    ),
    "velocity_distillation": lambda u, f, path, s, key: (
        objectives.velocity_distillation(
            u,
            path.x0,
            path.x1,
            s / 2,
            velocity=diagonal(f),
            interpolant=interpolants.linear(),
        )
    ),
    "any_step": lambda u, f, path, s, key: objectives.any_step(u, path, s, target=f),
}
"""Members with a frozen field f: ``(u, f, path, s, key) -> losses``."""


@pytest.mark.parametrize("name", FROZEN)
def test_no_gradient_reaches_a_target_field_or_teacher(key, name):
    params, path, s = random_problem(key, share_equal=0.0)
    other = jax.tree.map(lambda p: 0.9 * p, params)

    def loss(params, frozen):
        u, f = partial(network, params), partial(network, frozen)
        return FROZEN[name](u, f, path, s, key).mean()

    trained, frozen = jax.grad(loss, argnums=(0, 1))(params, other)
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(trained))
    for g in jax.tree.leaves(frozen):
        np.testing.assert_array_equal(g, 0)
    moved = jax.tree.map(lambda p: 1.1 * p, other)
    assert loss(params, moved) != loss(params, other)


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize(
    "objective",
    [
        objectives.mean_flow,
        partial(objectives.mean_flow, penalty=penalties.adaptive(power=1.0)),
        lambda u, path, s, **options: objectives.improved_mean_flow(
            u, diagonal(u), path, s, **options
        ),
    ],
)
def test_two_phases_have_the_gradient_of_the_nested_form(key, objective, share):
    params, path, s = random_problem(key, share_equal=share)

    def gradient_of(two_phases):
        def loss(params):
            u = partial(network, params)
            frozen = partial(network, jax.lax.stop_gradient(params))
            target = frozen if two_phases else None
            return objective(u, path, s, share_equal=share, target=target).mean()

        return jax.value_and_grad(loss)(params)

    assert_trees_close(gradient_of(True), gradient_of(False), rtol=1e-12)


def test_the_second_phase_may_use_what_has_no_forward_mode(key):
    params, path, s = random_problem(key, share_equal=0.5)

    @jax.custom_vjp
    def kernel(h):
        return jnp.tanh(h)

    kernel.defvjp(lambda h: (jnp.tanh(h), h), lambda h, g: (g / jnp.cosh(h) ** 2,))

    def fused(params, x, t, s, cond=None):
        hidden = jnp.concatenate([x, t[:, None], s[:, None]], 1) @ params["in"]
        return kernel(hidden) @ params["out"]

    def gradient_of(apply, two_phases):
        def loss(params):
            target = partial(network, params) if two_phases else None
            u = partial(apply, params)
            return objectives.mean_flow(
                u, path, s, share_equal=0.5, target=target
            ).mean()

        return jax.grad(loss)(params)

    with pytest.raises((TypeError, NotImplementedError)):
        gradient_of(fused, two_phases=False)
    assert_trees_close(
        gradient_of(fused, two_phases=True),
        gradient_of(network, two_phases=False),
        rtol=1e-12,
        atol=1e-14,
    )


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


def test_diagnostics_ride_along_without_changing_the_loss(key):
    params, path, s = random_problem(key, share_equal=0.5)
    u = partial(network, params)
    plain = penalties.clipped(0.5, penalty=penalties.adaptive(power=1.0))
    watched = penalties.diagnosed(plain, clip=0.5)
    loss, metrics = objectives.mean_flow(u, path, s, share_equal=0.5, penalty=watched)
    expected = objectives.mean_flow(u, path, s, share_equal=0.5, penalty=plain)
    np.testing.assert_array_equal(loss, expected)
    assert set(metrics) == {"residual", "derivative", "clipped"}
    equal = path.t == s
    np.testing.assert_array_equal(metrics["derivative"] == 0, equal)
    raw = objectives.mean_flow(u, path, s)
    np.testing.assert_allclose(metrics["residual"], jnp.sqrt(raw), rtol=1e-12)
    both, riding = objectives.improved_mean_flow(
        u, diagonal(u), path, s, penalty=watched
    )
    assert both.shape == riding["residual"].shape == s.shape


def test_every_wrapper_keeps_the_direction_of_the_gradient(key):
    """Values are changed, the residual's own gradient is not."""
    e = jax.random.normal(key, (4, 3))
    t = jnp.linspace(0.1, 0.9, 4)

    def slope(penalty):
        def total(e):
            return penalty(penalties.Terms(e, t, t, jnp.zeros_like(e))).sum()

        return jax.grad(total)(e)

    square = slope(penalties.mean_square)
    np.testing.assert_allclose(square, 2 * e / 3)
    norm = jnp.sqrt((e**2).sum(1, keepdims=True))
    np.testing.assert_allclose(
        slope(penalties.normalised(offset=0.1)), square / (norm + 0.1), rtol=1e-12
    )
    np.testing.assert_allclose(
        slope(penalties.clipped(0.5)), 2 * jnp.clip(e, -0.5, 0.5) / 3, rtol=1e-12
    )
    np.testing.assert_allclose(
        slope(penalties.pseudo_huber(scale=0.5)), e / jnp.sqrt(norm**2 + 0.25)
    )
    np.testing.assert_allclose(
        slope(penalties.weighted(lambda t: 1 + t)), square * (1 + t)[:, None]
    )


def test_normalising_is_finite_at_zero():
    e = jnp.zeros((2, 3))
    t = jnp.zeros(2)

    def total(e):
        return penalties.normalised()(penalties.Terms(e, t, t, e)).sum()

    assert jnp.isfinite(jax.grad(total)(e)).all()


def test_learned_weight_ends_at_the_mean_loss():
    terms = penalties.Terms(
        jnp.full((2, 3), 2.0), jnp.zeros(2), jnp.zeros(2), jnp.zeros((2, 3))
    )

    def total(w):
        return penalties.learned(lambda t, s: w + 0 * t)(terms).mean()

    np.testing.assert_allclose(jax.grad(total)(jnp.log(4.0)), 0, atol=1e-12)


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
