"""MeanFlow: learn the average velocity from its differential (Eulerian) identity.

``u = v + (s - t) du/dt``, ``du/dt = (v . grad_x) u + d_t u``. The members of the family
differ in four choices, which are the arguments of `mean_flow`: the velocity ``v``, the
direction of the derivative, where gradients stop, and the penalty.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.contracts import checked
from flowjax.events import over_event
from flowjax.fields import TotalDerivative, total_derivative
from flowjax.interpolants import Path
from flowjax.objectives.flow_matching import flow_matching
from flowjax.objectives.penalties import Loss, Terms, mean_square, plus
from flowjax.objectives.residuals import (
    EulerianStop,
    Tangent,
    anchored,
    eulerian_residual,
    reversal_residual,
)
from flowjax.typing import (
    AverageVelocityField,
    Condition,
    Share,
    State,
    Time,
    VelocityField,
)

_sg = jax.lax.stop_gradient


@checked
def mean_flow(
    u: AverageVelocityField,
    path: Path,
    s: Time,
    *,
    penalty: Callable[[Terms], Loss] = mean_square,
    share_equal: Share = 0.0,
    velocity: VelocityField | None = None,
    tangent: Tangent | None = None,
    target: AverageVelocityField | None = None,
    stop: EulerianStop = "derivative",
    gradient_share: float | Float[Array, ""] = 1.0,
    derivative_scale: float | Float[Array, ""] = 1.0,
    derivative: TotalDerivative = total_derivative,
) -> Loss:
    """Return the penalty of ``u(x_t, t, s) - sg[v + r (s - t) du/dt]`` for every row.

    ``du/dt = (w . grad_x) u + d_t u`` is one forward-mode pass along ``(w, 1, 0)`` in
    ``(x, t, s)``, where ``w = v`` unless ``tangent`` is given; ``sg`` stops the
    gradient. On rows with ``s = t`` the target is ``path.v`` and the loss is flow
    matching of the diagonal ``u(x, t, t)``. The paper writes ``u = v - (t - r) du/dt``
    on the clock ``1 - t``.

    With the *conditional* velocity of the path the minimiser is the average velocity
    only as long as the residual is linear in ``v`` and the derivative carries no
    gradient. Another ``stop`` than ``"derivative"`` therefore needs a marginal
    ``velocity``: a teacher's or the network's own.

    Args:
        u: the average-velocity field to train.
        path: a batch of points on conditional paths.
        s: destination times [batch], on either side of ``path.t``.
        penalty: from the residual to the loss; see `flowjax.objectives.penalties`.
        share_equal: the share of rows with ``s = t`` laid out as by
            `flowjax.times.ordered_pairs`. These rows are spared the derivative, which
            changes the cost but not the value. Rows that break this promise get NaN.
            The default 0 is right for every ``s``.
        velocity: ``v(x, t, cond)`` in place of ``path.v`` on the rows that are not
            spared: a teacher, `flowjax.fields.diagonal` of ``u`` itself, a closed form.
        tangent: ``w(x, t, cond)`` or its values [batch, *event], an array of JAX or of
            NumPy: the direction of the derivative, where it is not the velocity itself.
        target: the field whose derivative enters the target; no gradient reaches it.
            None nests the derivative in the gradient: prediction and derivative come
            from one pass of ``u``. With a field (``u`` itself, an average of its
            parameters, the same network in float32) there are two phases, first the
            target of the rows with s != t, then one ordinary pass of ``u`` over all
            rows, which may then use kernels that have no forward mode.
        stop: what carries no gradient besides ``path.v``: ``"derivative"`` the velocity
            and du/dt, ``"advection"`` the velocity and ``(v . grad_x) u``,
            ``"velocity"`` the velocity alone, ``"nothing"`` nothing.
        gradient_share: ``lambda``: this share of the gradient through du/dt is kept
            where ``stop`` leaves one.
        derivative_scale: ``r``, to warm the derivative up from 0 to 1.
        derivative: how du/dt is computed; `flowjax.fields.difference_quotient` needs
            no forward mode.

    Returns:
        What the penalty returns, by default the loss [batch]: a mean over the event, so
        that rows with ``s = t`` are exactly `flowjax.objectives.flow_matching`.

    Raises:
        ValueError: if ``s`` is not [batch] in [0, 1], ``share_equal`` does not fit the
            batch, ``stop`` is unknown, or it leaves a gradient to a ``target``.

    References:
        Geng et al. 2025, Mean Flows for One-step Generative Modeling, arXiv:2505.13447,
        Eq. 9-11 and 22. Stops: Boffi et al. 2025, arXiv:2505.18825; gradient share:
        You et al. 2025, Modular MeanFlow, arXiv:2508.17426.
    """
    if target is not None and stop != "derivative":
        raise ValueError(
            "a `target` field carries no gradient, so `stop` must be 'derivative'; "
            f"got {stop!r}"
        )
    identity = partial(
        eulerian_residual,
        velocity=velocity,
        stop=stop,
        gradient_share=gradient_share,
        derivative_scale=derivative_scale,
    )
    rows = ()
    if callable(tangent):
        identity = partial(identity, tangent=tangent)
    elif tangent is not None:
        rows = (jnp.asarray(tangent),)  # split as the rows of the batch are
    if target is None:
        nested = partial(identity, u, derivative=derivative)
        return penalty(anchored(u, path, s, nested, *rows, share_equal=share_equal))
    goal = partial(identity, _zero, derivative=_of_another(target, derivative))
    terms = anchored(_zero, path, s, goal, *rows, share_equal=share_equal)
    prediction = u(path.x, path.t, s, path.cond)
    return penalty(terms._replace(residual=prediction + _sg(terms.residual)))


def _zero(x: State, t: Time, s: Time, cond: Condition = None, /) -> State:
    return jnp.zeros_like(x)


def _of_another(
    target: AverageVelocityField, derivative: TotalDerivative
) -> TotalDerivative:
    """Return a derivative that is the target's, whatever the field, which is zero.

    The residual is then minus the goal, and the prediction of all rows is added to it
    afterwards in one pass.
    """

    def total(
        u: AverageVelocityField,
        x: State,
        t: Time,
        s: Time,
        v: State,
        cond: Condition = None,
        /,
    ) -> tuple[State, State]:
        return u(x, t, s, cond), derivative(target, x, t, s, v, cond)[1]

    return total


@checked
def improved_mean_flow(
    u: AverageVelocityField,
    v: VelocityField,
    path: Path,
    s: Time,
    *,
    penalty: Callable[[Terms], Loss] = mean_square,
    share_equal: Share = 0.0,
    target: AverageVelocityField | None = None,
) -> Loss:
    """Return the penalties of iMF: ``u - (s - t) sg[du/dt] - v_t`` and ``v - v_t``.

    The derivative is taken along the network's own velocity ``v``, whose noise is not
    that of the conditional one, so the compound prediction ``u - (s - t) sg[du/dt]``
    regresses the velocity of the path and the target holds no network. The value at the
    optimum is not zero but that of flow matching.

    ``v`` may be the diagonal of ``u`` or a second head of its network; the guided
    velocity of a network that is conditioned on the guidance scale is put into
    ``path.v`` by `flowjax.guidance.guided_velocity`.

    Args:
        u: the average-velocity field to train.
        v: the velocity field that is trained with it.
        path: a batch of points on conditional paths.
        s: destination times [batch].
        penalty: applied to both residuals.
        share_equal: as in `mean_flow`.
        target: as in `mean_flow`.

    Returns:
        What the penalty returns, the loss of both parts added.

    References:
        Geng et al. 2025, Improved Mean Flows, arXiv:2512.02012.
    """
    value = v(path.x, path.t, path.cond)  # one pass for the tangent and its own loss
    loss = mean_flow(
        u,
        path,
        s,
        penalty=penalty,
        share_equal=share_equal,
        tangent=_sg(value),
        target=target,
    )
    own = flow_matching(lambda x, t, cond=None: value, path, penalty=penalty)
    return plus(loss, own)


@checked
def bidirectional_mean_flow(
    u: AverageVelocityField,
    path: Path,
    s: Time,
    *,
    weight: float | Float[Array, ""] = 1.0,
    penalty: Callable[[Terms], Loss] = mean_square,
    share_equal: Share = 0.0,
) -> Loss:
    """Return `mean_flow` plus ``weight`` times the penalty of the reversed jump.

    ``u(x, t, s) - sg[u(sg X, s, t)]`` with ``X = x + (s - t) u(x, t, s)``: an average
    velocity does not care about the direction in which its interval is run through.
    Draw ``s`` on both sides of ``t`` (`flowjax.times.either_direction`); the network
    then inverts in one step, ``x0 = x1 - u(x1, 1, 0)``.

    Args:
        u: the average-velocity field to train.
        path: a batch of points on conditional paths.
        s: destination times [batch], on either side of ``path.t``.
        weight: of the second term; the paper lets it grow from 0.
        penalty: applied to both residuals.
        share_equal: as in `mean_flow`; the second term spares these rows as well.

    Returns:
        What the penalty returns, the loss of both parts added.

    References:
        Dai et al. 2026, BiFM, arXiv:2603.24942; read in a summary, not in the paper.
    """
    identity = partial(eulerian_residual, u)
    terms = anchored(u, path, s, identity, share_equal=share_equal)
    # The prediction again, from its residual: a second pass would cost a gradient more.
    reach = over_event(s - path.t, path.x)
    forth = terms.residual + _sg(path.v + reach * terms.derivative)
    reversal = partial(reversal_residual, u)
    back = anchored(None, path, s, reversal, forth, share_equal=share_equal)
    return plus(penalty(terms), penalty(back), weight=weight)
