"""Policies: imitate a teacher on the states that a network-free policy visits.

It trains pi-Flow's and ArcFlow's policies (`flowjax.policies`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.contracts import checked
from flowjax.events import over_event
from flowjax.fields import flow_map
from flowjax.interpolants import Path
from flowjax.objectives.penalties import Loss, Terms, mean_square
from flowjax.policies import Policy, PolicyMaker, policy_average
from flowjax.typing import Count, PRNGKey, State, Time, VelocityField

_sg = jax.lax.stop_gradient


@checked
def policy_imitation(
    key: PRNGKey,
    make_policy: PolicyMaker,
    path: Path,
    s: Time,
    *,
    velocity: VelocityField,
    states: Count = 2,
    substeps: Count = 64,
    teacher_ratio: float | Float[Array, ""] = 0.0,
    behaviour: Callable[..., Policy] | None = None,
    penalty: Callable[[Terms], Loss] = mean_square,
) -> Loss:
    """Return the penalty of ``pi(x_a, a) - sg v(x_a, a)`` where the policy leads.

    One policy ``pi`` is made at the start of the segment [t, s], one forward pass of
    the student. Without gradient it is then followed to ``states`` random times a of
    the segment, at each of which it is held against the teacher. It is zero where the
    policy is the teacher's velocity along its own trajectory.

    With a ``teacher_ratio`` r > 0 the segment is divided between the two: between its
    visits the state also advances by Euler steps along the teacher's velocity, already
    known there, which take up the share r of the segment. Let r fall from 1 to 0 early
    in training.

    Args:
        key: typed random key, for the times a.
        make_policy: the student, ``(x, t, s, cond) -> policy``.
        path: the starts; only ``x``, ``t`` and ``cond`` are read. Without data, states
            that the policy itself reached on the segments before.
        s: ends of the segments [batch], ``s > t``.
        velocity: the teacher, evaluated ``states`` times.
        states: states visited per segment.
        substeps: Euler steps of a policy without closed form from visit to visit.
        teacher_ratio: in [0, 1], a number or a traced scalar.
        behaviour: changes the policy that is followed, as
            `flowjax.policies.drop_components` does; None: it is the one that learns.
        penalty: from the residual to the loss. The papers' loss is 3 (ImageNet) or 30
            (text to image) times half the mean square.

    Returns:
        What the penalty returns, the mean over the visited states.

    Raises:
        ValueError: if ``s`` is not [batch] in [0, 1] or ``states`` less than 1.

    References:
        Chen et al. 2025, pi-Flow, arXiv:2510.14974; ArcFlow.
    """
    if states < 1:
        raise ValueError(f"`states` must be at least 1; got {states}")
    x, t, cond = path.x, path.t, path.cond
    policy = make_policy(x, t, s, cond)
    # Stopped before the scan, so that it has no tangents to carry, and after it for a
    # teacher or a behaviour with parameters of its own.
    own = _sg(policy) if behaviour is None else behaviour(_sg(policy))
    follow = flow_map(policy_average(own, steps=substeps))
    visits, departures = _itinerary(key, t, s, states, teacher_ratio)

    def visit(
        start: tuple[State, Time], times: tuple[Time, Time]
    ) -> tuple[tuple[State, Time], tuple[State, State]]:
        visit, departure = times
        y = follow(*start, visit)
        goal = velocity(y, visit, cond).astype(y.dtype)
        onward = y + over_event(departure - visit, y) * goal
        return (onward, departure), (y, goal)

    _, (points, goals) = _sg(jax.lax.scan(visit, (_sg(x), t), (visits, departures)))
    residual = jax.vmap(policy.velocity)(points, visits) - goals
    ends = jnp.broadcast_to(s[None], visits.shape)
    terms = Terms(residual, visits, ends, jnp.zeros_like(residual))
    return jax.tree.map(lambda loss: loss.mean(0), jax.vmap(penalty)(terms))


def _itinerary(
    key: PRNGKey,
    t: Time,
    s: Time,
    states: int,
    ratio: float | Float[Array, ""],
) -> tuple[Float[Array, "states batch"], Float[Array, "states batch"]]:
    """Return the times of the visits and those at which the teacher hands back."""
    key_student, key_teacher = jax.random.split(key)
    shape, ratio = (states, *t.shape), jnp.asarray(ratio, t.dtype)
    student = jnp.sort(jax.random.uniform(key_student, shape, t.dtype), 0)
    teacher = jnp.sort(jax.random.uniform(key_teacher, shape, t.dtype), 0)
    before = jnp.concatenate([jnp.zeros_like(teacher[:1]), teacher[:-1]])

    def time(share: Float[Array, "states batch"]) -> Float[Array, "states batch"]:
        return t[None] + (s - t)[None] * ((1 - ratio) * student + ratio * share)

    return time(before), time(teacher)
