"""One optimiser step as a pure function, ``step(state, batch) -> (state, metrics)``.

The step knows nothing about devices. `flowjax.training.parallel` compiles it, either
over a mesh, where the mean over the batch makes the compiler insert the one reduction
of the gradient, or under pmap, where ``axis_name`` makes the step average explicitly.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from flowjax.contracts import checked
from flowjax.dtypes import at_least_float32
from flowjax.training import ema
from flowjax.training.ema import Parameters
from flowjax.training.state import TrainState
from flowjax.typing import Count, PerExample, PRNGKey

Batch: TypeAlias = Any
"""Any pytree of arrays whose leaves have the leading axis ``batch``."""

Metrics: TypeAlias = dict[str, Array]

RESERVED_METRICS = frozenset({"loss", "grad_norm"})


@runtime_checkable
class LossFunction(Protocol):
    """The loss of every example of a batch, and what else is worth knowing about it."""

    def __call__(
        self, params: Parameters, key: PRNGKey, batch: Batch, state: TrainState, /
    ) -> tuple[PerExample, Metrics]:
        """Return losses [batch] and metrics, each a scalar or with leading axis batch.

        The step takes the mean of both. ``loss`` and ``grad_norm`` are its own names.
        ``state`` is the state before the step, without gradient: ``state.step`` for
        what changes in the course of training, ``state.ema_params`` for the field that
        targets are computed from.
        """
        ...


@runtime_checkable
class Prepare(Protocol):
    """What happens to a whole batch before the loss sees it, or a part of it."""

    def __call__(self, key: PRNGKey, batch: Batch, /) -> Batch:
        """Return the batch that the loss is given, with the leading axis batch."""
        ...


@runtime_checkable
class Step(Protocol):
    """A pure training step."""

    def __call__(
        self, state: TrainState, batch: Batch, /
    ) -> tuple[TrainState, Metrics]:
        """Return the state after one optimiser step and its scalar metrics."""
        ...


@checked
def batch_size(batch: Batch) -> int:
    """Return the leading axis that all leaves of ``batch`` share.

    Raises:
        ValueError: if there is no leaf, a leaf is a scalar, or the leaves disagree.
    """
    shapes = {
        "batch" + jax.tree_util.keystr(path): jnp.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch)
    }
    sizes = {shape[:1] for shape in shapes.values()}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(
            "all leaves of `batch` must share the leading axis batch; "
            f"got {shapes or 'no array'}"
        )
    return next(iter(shapes.values()))[0]


@checked
def make_step(
    loss_function: LossFunction,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: ema.Decay,
    prepare: Prepare | None = None,
    accumulate: Count = 1,
    axis_name: str | None = None,
) -> Step:
    """Return the step ``params <- params + optimizer(grad mean loss)``, with its EMA.

    Step n draws from ``fold_in(state.key, n)``: a resumed run repeats the draws of the
    run it continues. The metrics are the means of what the loss returns, ``loss`` and
    ``grad_norm``, the 2-norm of the gradient before the optimiser transforms it.

    Args:
        loss_function: see `LossFunction`.
        optimizer: an optax transformation; clipping and schedules belong in it.
        ema_decay: decay of the average as a function of the step, see `ema`.
        prepare: applied to the whole batch, with the key that the loss is given when
            nothing is accumulated: where noise is drawn and coupled with the data. None
            hands the batch on. Under pmap the whole batch is that of a device.
        accumulate: the batch is worked off in this many equal parts, one after the
            other, and their gradients are averaged: the gradient of the whole batch
            for the memory of a part. Part i draws from ``fold_in(., i)``. On n devices
            the batch should be a multiple of n * accumulate, else rows have to move
            between devices.
        axis_name: the mapped axis to average over, under pmap; each device then draws
            from its own ``fold_in(., index)``.

    Raises:
        ValueError: if ``accumulate`` is not positive; in the step, at trace time, if
            the batch is not divisible by it, or the loss returns wrong shapes or names.
    """

    def gradients(state: TrainState, key: PRNGKey, batch: Batch) -> Any:
        def objective(params: Parameters) -> tuple[Float[Array, ""], Metrics]:
            return _mean_loss(loss_function, params, key, batch, state)

        grads, metrics = jax.grad(objective, has_aux=True)(state.params)
        return grads, metrics

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        if prepare is not None:
            batch = prepare(key, batch)
        if accumulate == 1:
            grads, metrics = gradients(state, key, batch)
        else:
            grads, metrics = _accumulate(
                lambda key, part: gradients(state, key, part),
                key,
                batch,
                accumulate,
            )
        if axis_name is not None:
            grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay(state.step)
        return TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema_params=ema.update(state.ema_params, params, decay),
            key=state.key,
        ), {**metrics, "grad_norm": optax.tree.norm(grads)}

    return step


def _mean_loss(
    loss_function: LossFunction,
    params: Parameters,
    key: PRNGKey,
    batch: Batch,
    state: TrainState,
) -> tuple[Float[Array, ""], Metrics]:
    """Check what the loss returns and average it, in at least float32."""
    rows = batch_size(batch)
    losses, metrics = loss_function(params, key, batch, state)
    if losses.shape != (rows,):
        raise ValueError(
            f"the loss must return one number per example, [batch]=({rows},); "
            f"got {losses.shape}"
        )
    if taken := RESERVED_METRICS & metrics.keys():
        raise ValueError(f"the step itself reports the metrics {sorted(taken)}")
    for name, value in metrics.items():
        if jnp.shape(value)[:1] not in ((), (rows,)):
            raise ValueError(
                f"metric `{name}` must be a scalar or have the leading axis "
                f"batch={rows}; got shape {jnp.shape(value)}"
            )
    loss = _mean(losses)
    return loss, {"loss": loss, **{name: _mean(m) for name, m in metrics.items()}}


def _mean(x: Array) -> Float[Array, ""]:
    return jnp.mean(x, dtype=at_least_float32(x.dtype))


def _accumulate(
    evaluate: Callable[[PRNGKey, Batch], Any], key: PRNGKey, batch: Batch, parts: int
) -> Any:
    """Return the mean of ``evaluate(fold_in(key, i), part i)`` over the parts."""
    rows = batch_size(batch)
    if rows % parts:
        raise ValueError(
            f"`batch` must be divisible by accumulate={parts}; got {rows} rows"
        )

    def part(i: Array) -> Batch:
        # Part i holds rows i, i + parts, i + 2 parts, ...: every device keeps its rows.
        # Contiguous parts would each lie on a few of the devices and have to be moved.
        def rows_of(x: Array) -> Array:
            view = jnp.reshape(x, (rows // parts, parts, *jnp.shape(x)[1:]))
            return jax.lax.dynamic_index_in_dim(view, i, axis=1, keepdims=False)

        return jax.tree.map(rows_of, batch)

    def add(total: Any, i: Array) -> tuple[Any, None]:
        value = evaluate(jax.random.fold_in(key, i), part(i))
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, value), None

    shapes = jax.eval_shape(lambda: evaluate(key, part(jnp.zeros((), jnp.int32))))
    zeros = jax.tree.map(
        # Sums of bfloat16 gradients would lose the later parts.
        lambda s: jnp.zeros(s.shape, at_least_float32(s.dtype)),
        shapes,
    )
    total, _ = jax.lax.scan(add, zeros, jnp.arange(parts))
    return jax.tree.map(lambda a, s: (a / parts).astype(s.dtype), total, shapes)
