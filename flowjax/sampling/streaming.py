"""Streams of frames: one evaluation of the field per frame, whatever the solver takes.

A solver with n rows takes n evaluations one after the other. Where frames come in one
by one, n of them can be on the way at once, each at its own row: the field is called
once per incoming frame, on the batch of all, and each call finishes one frame. Every
frame is what `flowjax.sampling.multistep` makes of it; it comes out n - 1 calls later.

    stream = stream_start(solver, x0, cond=cond)        # of the first frame, for shapes
    stream, x1, cond1 = stream_step(field, stream, x0, cond)

Both are pure, so that `jax.lax.scan` runs a whole stream, and jit compiles one step.

References:
    Kodaira et al. 2023, StreamDiffusion: A Pipeline-level Solution for Real-time
    Interactive Generation, arXiv:2312.12491, Sec. 3.1 (stream batch).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flowjax.contracts import checked
from flowjax.sampling.inputs import start_state
from flowjax.sampling.multistep import (
    MultistepSolver,
    advance,
    check_solver,
    empty_memory,
)
from flowjax.typing import Condition, State, VelocityField


class Stream(NamedTuple):
    """The frames on the way, youngest first; slot i waits for row i + 1 of the solver.

    Attributes:
        solver: of n rows, with memory w.
        z: the points [n-1, batch, *event].
        memory: the last evaluations of each [w, n-1, batch, *event].
        cond: the condition of each, every leaf with the leading axes [n-1, batch].
        waiting: how many calls are still to come that finish no frame.
    """

    solver: MultistepSolver
    z: Float[Array, "slots batch *event"]
    memory: Float[Array, "w slots batch *event"]
    cond: Any  # with the axes of z, slots first
    waiting: Int[Array, ""]


@checked
def stream_start(
    solver: MultistepSolver, x0: State, *, cond: Condition = None
) -> Stream:
    """Return the stream before its first frame.

    Args:
        solver: from `flowjax.sampling.solvers`, or learned.
        x0: a start such as every frame will have [batch, *event]; a frame may be many
            examples, of streams that run in step. It fills the empty slots, so that the
            field sees nothing unusual while the first frames are on the way.
        cond: a condition such as every frame will have, with leading axis batch.

    Raises:
        ValueError: if ``x0``, ``cond`` or the shapes in ``solver`` do not fit.
    """
    x0 = start_state(x0)
    solver = check_solver(solver, x0)
    slots = len(solver.times) - 1

    def repeat(leaf: Array, axis: int = 0) -> Array:
        leaf = jnp.expand_dims(leaf, axis)
        return jnp.repeat(leaf, slots, axis=axis)

    memory = repeat(empty_memory(solver, x0), axis=1)
    filling = jax.tree.map(repeat, cond)
    return Stream(solver, repeat(x0), memory, filling, jnp.asarray(slots, jnp.int32))


@checked
def stream_step(
    field: VelocityField, stream: Stream, x0: State, cond: Condition = None
) -> tuple[Stream, State, Condition]:
    """Let one frame in and another out, with one call of the field.

    Args:
        field: the velocity field, called with n * batch rows, the youngest frame's
            first; it must not mix them.
        stream: from `stream_start` or the last step.
        x0: the start of the new frame [batch, *event].
        cond: its condition, with leading axis batch.

    Returns:
        The stream; the end [batch, *event] of the frame that came in n - 1 calls ago,
        NaN in the first n - 1 calls; and that frame's condition.

    Raises:
        ValueError: if ``x0`` or ``cond`` differs in shape from those of `stream_start`,
            or the field's result from its input.
    """
    x0 = start_state(x0)
    _check_frame(stream, x0, cond)
    batch = len(x0)

    def enter(new: Array, older: Array) -> Array:
        return jnp.concatenate([jnp.asarray(new)[None], older])

    def flatten(leaf: Array) -> Array:
        return leaf.reshape(-1, *leaf.shape[2:])

    def spread(leaf: Array) -> Array:
        return jnp.repeat(leaf, batch, axis=0)

    z = enter(x0, stream.z)
    blank = empty_memory(stream.solver, x0)[:, None]
    memory = jnp.concatenate([blank, stream.memory], axis=1)
    conds = jax.tree.map(enter, cond, stream.cond)
    row = jax.tree.map(spread, stream.solver)
    after, kept = advance(
        field,
        flatten(z),
        jax.vmap(flatten)(memory),
        row._replace(weights=row.weights.T),
        jax.tree.map(flatten, conds),
    )
    after, kept = after.reshape(z.shape), kept.reshape(memory.shape)
    following = Stream(
        stream.solver,
        after[:-1],
        kept[:, :-1],
        jax.tree.map(lambda leaf: leaf[:-1], conds),
        jnp.maximum(stream.waiting - 1, 0),
    )
    x1 = jnp.where(stream.waiting > 0, jnp.nan, after[-1])
    return following, x1, jax.tree.map(lambda leaf: leaf[-1], conds)


def _check_frame(stream: Stream, x0: State, cond: Condition) -> None:
    """Raise ValueError unless the frame is like those of ``stream``."""

    def kind(tree: Condition, axes: int) -> list[str]:
        found = jax.tree_util.tree_leaves_with_path(tree)
        return [
            f"{jax.tree_util.keystr(path)} {leaf.dtype}{list(leaf.shape[axes:])}"
            for path, leaf in found
        ]

    expected = kind({"x0": stream.z, "cond": stream.cond}, 1)
    got = kind(jax.tree.map(jnp.asarray, {"x0": x0, "cond": cond}), 0)
    if got != expected:
        raise ValueError(
            f"a frame of this stream needs {', '.join(expected)}; got {', '.join(got)}"
        )
