"""Policies: imitate a teacher on the states that a network-free policy visits.

`policy_imitation` trains pi-Flow's and ArcFlow's policies (`flowjax.policies`).
Constant acceleration flow is the policy of two numbers per coordinate, an initial
velocity and an acceleration, learned one after the other on a teacher's pairs.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax._checks import check_grid, check_time
from flowjax._typing import (
    AverageVelocityField,
    Condition,
    PRNGKey,
    State,
    Time,
    VelocityField,
)
from flowjax.fields import flow_map
from flowjax.interpolants import Interpolant, Path, expand_like, sample_path
from flowjax.objectives.flow_matching import flow_matching
from flowjax.objectives.penalties import DEFAULT, Loss, Terms
from flowjax.policies import Policy, PolicyMaker, policy_average

_sg = jax.lax.stop_gradient


@runtime_checkable
class Acceleration(Protocol):
    """The acceleration of constant acceleration flow, given the initial velocity."""

    def __call__(
        self, x: State, t: Time, v0: State, cond: Condition = None, /
    ) -> State:
        """Return the acceleration at ``x``, ``t`` for the initial velocity ``v0``."""
        ...


def segment_pairs(
    key: PRNGKey,
    batch: int,
    /,
    *,
    grid: Sequence[float] | np.ndarray | Array = (0.0, 1.0),
) -> tuple[Time, Time]:
    """Draw segments of a grid, each as often as it is long: ``t`` and ``s``.

    The grid is that of the sampler, one segment per evaluation of the network. pi-Flow
    gives the last of four segments half the length of the others.

    Raises:
        ValueError: unless the grid is a list of times that increase inside [0, 1].
    """
    times = check_grid(grid)
    if times[0] > times[-1]:
        raise ValueError(f"`grid` must increase; got {times.tolist()}")
    k = jax.random.choice(
        key, len(times) - 1, (batch,), p=jnp.asarray(np.diff(times) / np.ptp(times))
    )
    edges = jnp.asarray(times, jnp.result_type(float))
    return edges[k], edges[k + 1]


def policy_imitation(
    key: PRNGKey,
    make_policy: PolicyMaker,
    path: Path,
    s: Time,
    *,
    velocity: VelocityField,
    states: int = 2,
    substeps: int = 64,
    teacher_ratio: float | Float[Array, ""] = 0.0,
    behaviour: Callable[[Any], Policy] | None = None,
    penalty: Callable[[Terms], Loss] = DEFAULT,
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
    check_time("s", s, len(path.x))
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
        onward = y + expand_like(departure - visit, y).astype(y.dtype) * goal
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


def accelerated_line(ratio: float = 1.5) -> Interpolant:
    """Return ``alpha = t^2 + h (t - t^2)``, ``sigma = 1 - alpha`` for ``h = ratio``.

    The straight line from x0 to x1 with the initial velocity ``v0 = h (x1 - x0)`` and
    the constant acceleration ``(2 - 2 h) (x1 - x0)``; h = 1 is the linear path.

    Args:
        ratio: in [0, 2], so that alpha does not turn back.

    Raises:
        ValueError: unless ``0 <= ratio <= 2``.

    References:
        Park et al. 2024, Constant Acceleration Flow, arXiv:2411.00322.
    """
    if not 0 <= ratio <= 2:
        raise ValueError(f"`ratio` must lie in [0, 2]; got {ratio}")

    def alpha(t: Float[Array, "..."], /) -> Float[Array, "..."]:
        return t * (ratio + (1 - ratio) * t)

    # 1 - alpha, factored: exactly 0 at t=1 in every precision.
    return Interpolant(alpha=alpha, sigma=lambda t: (1 - t) * (1 + (1 - ratio) * t))


def constant_acceleration_velocity(
    v0: VelocityField,
    path: Path,
    *,
    ratio: float = 1.5,
    penalty: Callable[[Terms], Loss] = DEFAULT,
) -> Loss:
    """Return the penalty of ``v0(x_t, t) - h (x1 - x0)``, CAF's first stage.

    ``x_t`` runs along `accelerated_line` of ``h = ratio``. Zero at the initial velocity
    where pairs do not cross.

    Args:
        v0: the initial velocity to train; the sampler reads it at t = 0.
        path: pairs of a teacher; only ``x0``, ``x1``, ``t`` and ``cond`` are read.
        ratio: h, above 1 a decelerating path.
        penalty: from the residual to the loss.

    Returns:
        What the penalty returns, by default the loss [batch].

    Raises:
        ValueError: unless ``0 <= ratio <= 2``.

    References:
        Park et al. 2024, Constant Acceleration Flow, arXiv:2411.00322.
    """
    line = accelerated_line(ratio)
    bent = sample_path(line, path.x0, path.x1, path.t, path.cond)
    return flow_matching(
        v0, bent._replace(v=ratio * (path.x1 - path.x0)), penalty=penalty
    )


def constant_acceleration(
    acceleration: Acceleration,
    path: Path,
    *,
    velocity: VelocityField,
    penalty: Callable[[Terms], Loss] = DEFAULT,
) -> Loss:
    """Return the penalty of ``a(x_t, t, v0) - 2 (x1 - x0 - v0)``, CAF's second stage.

    The initial velocity ``v0 = sg velocity(x0, 0)`` is that of the first stage, and
    ``x_t = x0 + v0 t + (x1 - x0 - v0) t^2`` ends in x1 whatever it is: the acceleration
    makes good the error of the velocity.

    Args:
        acceleration: the field to train, ``(x, t, v0, cond)``.
        path: pairs of a teacher; only ``x0``, ``x1``, ``t`` and ``cond`` are read.
        velocity: the trained first stage.
        penalty: from the residual to the loss.

    Returns:
        What the penalty returns, by default the loss [batch].

    References:
        Park et al. 2024, Constant Acceleration Flow, arXiv:2411.00322.
    """
    t, cond = path.t, path.cond
    v0 = _sg(velocity(path.x0, jnp.zeros_like(t), cond))
    time = expand_like(t, path.x0).astype(path.x0.dtype)
    half = path.x1 - path.x0 - v0
    x = path.x0 + v0 * time + half * time**2
    residual = acceleration(x, t, v0, cond) - 2 * half
    return penalty(Terms(residual, t, t, jnp.zeros_like(residual)))


def constant_acceleration_field(
    acceleration: Acceleration, v0: State
) -> AverageVelocityField:
    """Return CAF's sampler as a field, ``u(x, t, s) = v0 + (t + s) / 2 a(x, t, v0)``.

    ``x_s = x_t + v0 (s - t) + a (s^2 - t^2) / 2``, exact where the acceleration is
    constant. One step needs two evaluations: ``v0 = velocity(x0, 0)`` and this field in
    `flowjax.sampling.few_step`.

    Args:
        acceleration: the trained second stage.
        v0: the initial velocities of the states to be moved [batch, *event].
    """

    def u(x: State, t: Time, s: Time, cond: Condition = None, /) -> State:
        middle = expand_like((t + s) / 2, x).astype(x.dtype)
        return v0 + middle * acceleration(x, t, v0, cond)

    return u
