"""Networks (Flax Linen) with the signature of an average-velocity field.

Every network is called as ``net.apply(params, x, t, s, cond)``, so
``functools.partial(net.apply, params)`` is an `AverageVelocityField`; its diagonal
``u(x, t, t, cond)`` is a velocity field. All pass `jax.jvp` and the gradient of it, and
hold no state and draw no random numbers after initialisation. What else they can do
(a second head, a decoder that sees only s, guidance as an input, ...) is described once
at `Network`; `graft` starts one from the parameters of another.
"""

from flowjax.extras import require

require("flax", extra="train")

from flowjax.networks.arguments import named_conditions
from flowjax.networks.base import Network, Outputs
from flowjax.networks.dit import DiT
from flowjax.networks.embeddings import Conditioning, TimeEmbedding, sinusoidal
from flowjax.networks.grafting import graft, ungrafted
from flowjax.networks.log_variance import LogVariance
from flowjax.networks.mlp import MLP

__all__ = [
    "MLP",
    "Conditioning",
    "DiT",
    "LogVariance",
    "Network",
    "Outputs",
    "TimeEmbedding",
    "graft",
    "named_conditions",
    "sinusoidal",
    "ungrafted",
]
