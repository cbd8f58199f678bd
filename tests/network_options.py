"""Networks with every option, prepared for the tests of their laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.networks import MLP, DiT
from tests.comparing import assert_trees_close

float64 = functools.partial(dict, dtype=jnp.float64, param_dtype=jnp.float64)


def inputs(event, batch=4, dtype=float, seed=1):
    """A state, its time and its destination; float32 unless x64 is on."""
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.standard_normal((batch, *event)), dtype)
    return x, jnp.asarray(rng.random(batch)), jnp.asarray(rng.random(batch))


def initialise(net, x, t, s, cond=None, scale=0.25):
    """Random parameters of the right shapes, none of them zero."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, t, s, cond)
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda p: jnp.asarray(scale * rng.standard_normal(p.shape), p.dtype), shapes
    )


small_mlp = functools.partial(MLP, width=8, depth=3)
small_dit = functools.partial(DiT, patch_size=2, width=8, num_heads=2)

# Each member: a factory and the shape of one example.
MEMBERS = {
    "mlp": (small_mlp, (3,)),
    "dit": (functools.partial(small_dit, depth=2), (4, 4, 2)),
    "dit scan": (functools.partial(small_dit, depth=3, scan=True), (4, 4, 2)),
    "mlp array": (small_mlp, (2, 3)),
    "dit sequence": (functools.partial(small_dit, depth=2), (6, 2)),
    "dit volume": (functools.partial(small_dit, depth=2), (2, 4, 2, 1)),
}
members = pytest.mark.parametrize("member", MEMBERS)

OPTIONS = {
    "velocity_head": {"velocity_head": 2},
    "whole velocity_head": {"velocity_head": 3},
    "start": {"times": "start"},
    "duration": {"times": "duration"},
    "decoder": {"times": "start", "decoder_depth": 1},
    "zero_init_duration": {"zero_init_duration": True},
    "guidance": {"guidance": True},
    "vector": {"vector_features": 2},
    "array": {"array_channels": 2},
    "out_features": {"out_features": 5},
    "tap": {"tap": 0},
}
EVERYTHING = {
    "velocity_head": 1,
    "times": "start",
    "decoder_depth": 1,
    "guidance": True,
    "num_classes": 3,
    "vector_features": 2,
    "array_channels": 1,
    "out_features": 5,
    "tap": 0,
}
# In-context conditions leave nothing for a decoder to see.
CONTEXT = {n: o for n, o in EVERYTHING.items() if n not in ("times", "decoder_depth")}
CONTEXT["context_tokens"] = 2
# The options are one piece of code for all networks: each alone on the smallest, and
# all together on the others.
CASES = {f"mlp {name}": ("mlp", options) for name, options in OPTIONS.items()} | {
    f"{member} everything": (member, EVERYTHING) for member in MEMBERS
}
CASES["dit scan context"] = ("dit scan", CONTEXT)
cases = pytest.mark.parametrize("case", CASES)


def condition(net, event, batch=4):
    """What the network conditions on, a row each."""
    rng = np.random.default_rng(7)
    label = jnp.arange(batch) % 4 if net.num_classes else None
    named = {} if label is None else {"label": label}
    if net.guidance:
        named["scale"] = jnp.asarray(1 + 3 * rng.random(batch))
        named["interval"] = jnp.asarray(rng.random((batch, 2)))
    if net.vector_features:
        named["vector"] = jnp.asarray(rng.normal(size=(batch, net.vector_features)))
    if net.array_channels:
        shape = (batch, *event[:-1], net.array_channels)
        named["array"] = jnp.asarray(rng.normal(size=shape))
    if net.vector_features or net.array_channels:
        named["given"] = jnp.arange(batch) != 1
    return label if named.keys() <= {"label"} else named


def prepare(member, **options):
    """A float64 network, random parameters and the inputs."""
    make, event = MEMBERS[member]
    net = make(**float64(**options))
    args = (*inputs(event), condition(net, event))
    return net, initialise(net, *args), args


def run(function, *args):
    """Compile and call ``function``; tests compare what one program returns."""
    return jax.jit(function)(*args)


assert_equal = functools.partial(assert_trees_close, rtol=1e-12, atol=1e-12)
