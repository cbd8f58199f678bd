"""Policies: velocities that need no network on one segment of time.

One call of a network at the start ``(x_t, t)`` of a segment [t, s] gives the parameters
of a policy, and the policy is a velocity on the whole segment: many small steps cost
nothing. A policy is a NamedTuple of arrays with the batch axis first, so that
``jax.lax.stop_gradient(policy)`` detaches it and ``jax.tree.map`` slices its rows. Its
`velocity` is a `VelocityField` like any other.

All live on the linear path ``x_t = t x1 + (1 - t) x0`` and predict velocities at the
start: with a velocity ``m`` the data is at ``x + (1 - t) m``. The network answers
[batch, *event[:-1], features]; see `split_output`. Channels come last, and each
position of the event has a mixture of its own. A last layer that starts at zero makes
all components of a Gaussian mixture equal, and their gradients too: they would never
part.

References:
    Chen et al. 2025, pi-Flow, arXiv:2510.14974; ArcFlow (momentum).
"""

from flowjax.policies.jumps import (
    PolicyMaker,
    policy_average,
    policy_step,
)
from flowjax.policies.kinds import (
    DataGridPolicy,
    GaussianMixturePolicy,
    IntegrablePolicy,
    MomentumPolicy,
    Policy,
    drop_components,
    mean_exponential,
)
from flowjax.policies.outputs import (
    data_grid_policy,
    gaussian_mixture_policy,
    momentum_policy,
    split_output,
)

__all__ = [
    "DataGridPolicy",
    "GaussianMixturePolicy",
    "IntegrablePolicy",
    "MomentumPolicy",
    "Policy",
    "PolicyMaker",
    "data_grid_policy",
    "drop_components",
    "gaussian_mixture_policy",
    "mean_exponential",
    "momentum_policy",
    "policy_average",
    "policy_step",
    "split_output",
]
