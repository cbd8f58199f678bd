"""Sources: where the noise that a flow starts from is drawn."""

from typing import Annotated, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax.contracts import checked
from flowjax.typing import Count, PRNGKey, Range, State


@runtime_checkable
class Source(Protocol):
    """A law of the noise at t=0; hyper-parameters are bound with functools.partial."""

    def __call__(self, key: PRNGKey, batch: int, event: tuple[int, ...], /) -> State:
        """Return noise [batch, *event]."""
        ...


@checked
def normal(key: PRNGKey, batch: Count, event: tuple[int, ...], /) -> State:
    """Draw standard normal noise [batch, *event], in the default floating dtype."""
    return jax.random.normal(key, (batch, *event))


@checked
def sparse_directions(
    data: Float[np.ndarray | Array, "n *event"], *, largest_cosine: float = 0.01
) -> Float[np.ndarray, "r dim"]:
    """Return the directions along which there are no data, for `pruned_normal`.

    The candidates are the principal axes of the normalised data ``x / |x|``, each with
    both signs; those stay whose cosine with every example is at most
    ``largest_cosine``.

    Args:
        data: examples, on the scale on which the flow is trained.
        largest_cosine: bound of the cosine.

    Returns:
        Unit vectors, [r, dim] with the event flattened; r may be 0.

    Raises:
        ValueError: if there are not at least two examples, or one is zero.

    References:
        Lee et al. 2025, Is There a Better Source Distribution than Gaussian?,
        arXiv:2512.18184.
    """
    rows = np.asarray(data, np.float64).reshape((len(data), -1))
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if len(rows) < 2 or not (norms > 0).all():
        raise ValueError(
            "`data` must hold at least two examples, none of them zero; got "
            f"{len(rows)}, {int((norms == 0).sum())} of them zero"
        )
    units = rows / norms
    axes = np.linalg.svd(units - units.mean(0), full_matrices=False)[2]
    candidates = np.concatenate([axes, -axes])
    return candidates[(candidates @ units.T).max(1) <= largest_cosine]


@checked
def pruned_normal(
    key: PRNGKey,
    batch: Count,
    event: tuple[int, ...],
    directions: Float[np.ndarray | Array, "r dim"],
    *,
    threshold: Annotated[float, Range(0, 1, "(]")],
    attempts: Count = 64,
) -> State:
    """Draw standard normal noise that points along none of ``directions``.

    A draw whose cosine with a direction exceeds ``threshold`` is drawn anew. For
    inference with a model trained on the whole source: the radius keeps its law, the
    direction does not. The pruned source is not Gaussian: use the ODE, as scores and
    the SDE no longer apply.

    Args:
        key: typed random key.
        batch: number of rows.
        event: shape of one example.
        directions: unit vectors, from `sparse_directions`.
        threshold: largest cosine that is accepted, in (0, 1].
        attempts: draws after which a row is kept as it is.

    Returns:
        Noise [batch, *event]. A row depends on the key and its place alone.

    Raises:
        ValueError: if ``directions`` are not [r, dim] with the size of the event, or
            ``threshold`` is out of range.
    """
    axes = jnp.asarray(directions)
    size = int(np.prod(event))
    if axes.ndim != 2 or axes.shape[1] != size:
        raise ValueError(
            f"`directions` must have shape [r, {size}] for the event {event}; got "
            f"{axes.shape}"
        )

    def draw(attempt: int | Array) -> State:
        return jax.random.normal(jax.random.fold_in(key, attempt), (batch, size))

    def rejected(x: State) -> Array:
        norm = jnp.sqrt(jnp.square(x).sum(1, keepdims=True))
        return (x @ axes.T.astype(x.dtype) > threshold * norm).any(1)

    def again(state: tuple[Array, State]) -> tuple[Array, State]:
        attempt, x = state
        return attempt + 1, jnp.where(rejected(x)[:, None], draw(attempt), x)

    def unfinished(state: tuple[Array, State]) -> Array:
        attempt, x = state
        return rejected(x).any() & (attempt < attempts)

    _, x = jax.lax.while_loop(unfinished, again, (jnp.asarray(1), draw(0)))
    return x.reshape((batch, *event))


@checked
def anneal_source(key: PRNGKey, x0: State, beta: float | Float[Array, ""]) -> State:
    """Return ``sqrt(1 - beta^2) x0 + beta noise``: from independent to teacher's pairs.

    At ``beta = 1`` the source is independent of the data, at 0 it is the pair's: the
    law of a standard normal source stays what it is. SlimFlow lets beta fall linearly.

    References:
        Zhu et al. 2024, SlimFlow, arXiv:2407.12718 (annealing reflow).
    """
    b = jnp.asarray(beta, x0.dtype)
    return jnp.sqrt((1 - b) * (1 + b)) * x0 + b * jax.random.normal(
        key, x0.shape, x0.dtype
    )
