"""Is the truth where training settles? The spectrum of each objective's descent there.

With a stopped gradient the direction of descent belongs to no loss, and its zero may
repel. Around a flow of constant velocity the error of a field is a sum of waves in x,
each with its own evolution, so that one wave number after another can be looked at.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import interpolants, objectives
from tests.members import MEMBERS, Truth

pytestmark = pytest.mark.usefixtures("x64")

WAY = 2.0  # constant velocity: how far the flow carries a point from t = 0 to 1
TRUTH = Truth(
    lambda x, t, s, cond=None: jnp.full_like(x, WAY),
    lambda x, t, cond=None: jnp.full_like(x, WAY),
    interpolants.linear(),
)


def decay_rates(loss, wave_number, *, to_data=False, powers=(6, 2), nodes=8):
    """Eigenvalues of the descent of ``loss`` at the truth, negative where it departs.

    The field is the truth plus waves in x times polynomials in (t, s), orthonormal over
    one wave length and the times t <= s.
    """
    node, weight = np.polynomial.legendre.leggauss(nodes)
    node, weight = (node + 1) / 2, weight / 2
    phase = np.arange(8) / 8 * 2 * np.pi
    t, fraction, x = (
        jnp.asarray(a.ravel())
        for a in np.meshgrid(node, node, phase / wave_number, indexing="ij")
    )
    weights = np.outer(np.outer(weight, weight), np.full(8, 1 / 8)).ravel()
    s = jnp.ones_like(t) if to_data else t + (1 - t) * fraction
    x0 = x[:, None] - WAY * t[:, None]
    path = interpolants.sample_path(TRUTH.interpolant, x0, x0 + WAY, t)

    def waves(x, t, s):
        angle = wave_number * x[:, 0]
        in_time = jnp.stack([(2 * t - 1) ** i for i in range(powers[0])])
        in_end = jnp.stack(
            [(2 * s - 1) ** i for i in range(1 if to_data else powers[1])]
        )
        products = jnp.einsum(
            "ab,cb,db->acdb",
            jnp.stack([jnp.cos(angle), jnp.sin(angle)]),
            in_time,
            in_end,
        )
        return products.reshape((-1, len(t)))

    values = np.asarray(waves(path.x, t, s))
    basis = np.linalg.inv(np.linalg.cholesky((values * weights) @ values.T))

    def expected(theta):
        def field(x, t, s, cond=None):
            return TRUTH.u(x, t, s) + (theta @ waves(x, t, s))[:, None]

        return jnp.sum(weights * loss(field, path, s, TRUTH))

    # Differences, because a stopped gradient would stop a second derivative as well.
    step = 1e-4
    descent = jax.jit(jax.vmap(jax.grad(expected)))
    difference = descent(step * basis) - descent(-step * basis)
    return np.linalg.eigvals(np.asarray(difference / (2 * step)) @ basis.T)


@pytest.mark.parametrize(
    "name", [n for n in MEMBERS if n != "eulerian_self_distillation_advection"]
)
def test_the_truth_does_not_repel(name):
    """Not even waves shorter than the way of a jump grow (here half of it)."""
    member = MEMBERS[name]
    rates = decay_rates(member.loss, 6.0, to_data=member.to_data)
    assert rates.real.min() > -1e-9 * np.abs(rates).max()
    if name != "flow_matching":  # which leaves u(x, t, s) off the diagonal free
        assert rates.real.min() > 0.1


@pytest.mark.parametrize("times_around", [0.5, 0.9, 2.0, 3.0])
def test_stopping_the_advection_repels_waves_shorter_than_the_way(times_around):
    """The error e of X(x, t, s) descends along d_t* (d_t + v d_x) e.

    With e = exp(ikx - iCt/2) f(t), C = kv, that is -f'' - (C/2)^2 f: negative for the
    first sine of a jump over the whole way, pi^2 < (C/2)^2, once C > 2 pi.
    """
    rates = decay_rates(
        MEMBERS["eulerian_self_distillation_advection"].loss,
        times_around * 2 * np.pi / WAY,
        powers=(8, 2),
    )
    assert (rates.real.min() < 0) == (times_around > 1)


def test_a_tangent_against_the_flow_repels():
    """The law can fail: the same residual with the time of the derivative reversed."""
    rates = decay_rates(
        lambda u, path, s, truth: objectives.mean_flow(
            u, path, s, derivative_scale=-1.0
        ),
        6.0,
    )
    assert rates.real.min() < -0.1
