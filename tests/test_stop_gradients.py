"""Where gradients stop: targets, teachers, and the second of two phases."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import interpolants, objectives
from flowjax.fields import chained, diagonal
from flowjax.objectives import penalties
from tests.comparing import assert_trees_close
from tests.random_problem import network, random_problem

pytestmark = pytest.mark.usefixtures("x64")


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
