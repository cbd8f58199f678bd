"""Laws of the networks' options: heads, decoder, taps, other outputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import interpolants, objectives
from flowjax.networks import (
    LogVariance,
    graft,
    ungrafted,
)
from flowjax.objectives import penalties
from tests.comparing import relative
from tests.network_options import (
    CASES,
    CONTEXT,
    EVERYTHING,
    MEMBERS,
    assert_equal,
    cases,
    condition,
    float64,
    initialise,
    inputs,
    members,
    prepare,
    run,
    small_dit,
    small_mlp,
)


@cases
def test_jvp_is_the_central_difference(case, x64):
    member, options = CASES[case]
    net, params, (x, t, s, cond) = prepare(member, **options)
    primals, tangents = (x, t, s), inputs(x.shape[1:], seed=5)
    steps = 2e-4 * jnp.array([-2.0, -1.0, 1.0, 2.0])
    weights = jnp.array([1.0, -8.0, 8.0, -1.0]) / (12 * 2e-4)  # of fourth order

    def moved(step):
        at = (z + step * d for z, d in zip(primals, tangents, strict=True))
        return net.apply(params, *at, cond, method="outputs")

    @jax.jit
    def both():
        values = jax.lax.map(moved, steps)
        difference = jax.tree.map(lambda y: jnp.tensordot(weights, y, 1), values)
        return jax.jvp(moved, (0.0,), (1.0,))[1], difference

    tangent, difference = both()
    assert (tangent.v is not None) == bool(net.velocity_head)
    for a, b in zip(*map(jax.tree.leaves, (tangent, difference)), strict=True):
        assert np.linalg.norm(b) > 1e-2
        assert relative(a, b) < 1e-9


@members
def test_both_heads_are_zero_at_initialisation(member):
    make, event = MEMBERS[member]
    net = make(**EVERYTHING)
    args = (*inputs(event), condition(net, event))
    init = functools.partial(net.init_with_output, method="outputs")
    out, params = run(init, jax.random.key(0), *args)
    np.testing.assert_array_equal(out.u, np.zeros((4, *event[:-1], 5)))
    np.testing.assert_array_equal(out.v, np.zeros((4, *event)))
    assert np.all(np.any(np.asarray(out.features).reshape(4, -1), axis=1))
    # The parameters do not depend on the method they are made with.
    tree = jax.eval_shape(net.init, jax.random.key(0), *args)
    assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, params)


def second_branch(params, fork):
    """The parameters of the plain network that the second head is."""
    own = dict(params["params"])
    branch = {n: own.pop(n) for n in list(own) if n.startswith("velocity_")}
    if "velocity_blocks" in branch:
        own["blocks"] = jax.tree.map(
            lambda a, b: jnp.concatenate([a[:fork], b]),
            own["blocks"],
            branch.pop("velocity_blocks"),
        )
    renamed = {n.removeprefix("velocity_"): leaf for n, leaf in branch.items()}
    assert renamed.keys() <= own.keys()
    return {"params": own | renamed}


def branch_blocks(params):
    """The indices of the blocks that exist twice."""
    own = params["params"]
    if "velocity_blocks" in own:
        count = len(own["velocity_blocks"]["qkv"]["kernel"])
        return list(range(len(own["blocks"]["qkv"]["kernel"])))[-count:]
    names = [n.split("_") for n in own if n.startswith("velocity_")]
    return sorted(int(n[2]) for n in names if n[1] in ("layer", "block"))


@pytest.mark.parametrize(
    ("member", "head"),
    [("mlp", 1), ("mlp", 3), ("dit", 1), ("dit scan", 2), ("dit scan", 3)],
)
def test_each_head_is_a_plain_network(member, head, x64):
    net, params, args = prepare(member, velocity_head=head)
    plain = net.clone(velocity_head=0)
    first = {n: p for n, p in params["params"].items() if "velocity" not in n}

    def heads(params, first, second):
        u, v = net.apply(params, *args, method="heads")
        called = net.apply(params, *args)
        return u, v, called, plain.apply(first, *args), plain.apply(second, *args)

    second = second_branch(params, net.depth - head)
    assert branch_blocks(params) == list(range(net.depth - head, net.depth))
    u, v, called, plain_u, plain_v = run(heads, params, {"params": first}, second)
    assert_equal((u, u, v), (called, plain_u, plain_v))
    assert relative(u, v) > 0.1


def stacked(params):
    """The parameters of a looped DiT as those of a scanned one."""
    own = dict(params["params"])
    for prefix in ("", "velocity_"):
        names = sorted(n for n in own if n.startswith(f"{prefix}block_"))
        blocks = [own.pop(n) for n in names]
        own[f"{prefix}blocks"] = jax.tree.map(lambda *p: jnp.stack(p), *blocks)
    return {"params": own}


@pytest.mark.parametrize("options", [EVERYTHING, CONTEXT])
def test_scan_and_remat_are_the_same_function(options, x64):
    net, params, args = prepare("dit", **options)

    @functools.partial(jax.jit, static_argnums=0)
    def outputs_and_gradient(net, params):
        def loss(params):
            out = net.apply(params, *args, method="outputs")
            return sum(jnp.sum(y**2) for y in out), out

        return jax.grad(loss, has_aux=True)(params)

    gradient, outputs = outputs_and_gradient(net, params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        # every single entry: no parameter is dead by construction
        assert np.all(np.abs(leaf) > 1e-12), jax.tree_util.keystr(path)
    for options in ({"remat": True}, {"scan": True, "remat": True}):
        convert = stacked if "scan" in options else (lambda p: p)
        other = outputs_and_gradient(net.clone(**options), convert(params))
        assert_equal(other[1], outputs)
        errors = jax.tree.map(relative, other[0], convert(gradient))
        assert max(jax.tree.leaves(errors)) < 1e-11


@members
def test_decoupled_is_the_plain_network_on_the_diagonal(member, x64):
    plain, params, (x, t, s, _) = prepare(member, times="start")
    net = plain.clone(decoder_depth=1)
    assert ungrafted(params, jax.eval_shape(net.init, jax.random.key(0), x, t, s)) == ()

    def values(params):
        here, there = (net.apply(params, x, t, z, method="outputs") for z in (t, s))
        return here, there, plain.apply(params, x, t, s, method="outputs")

    here, there, velocity = run(values, params)
    assert_equal(here, velocity)
    assert relative(there.u, here.u) > 0.01


@pytest.mark.parametrize("member", ["mlp", "dit scan"])
def test_only_the_decoder_sees_the_destination(member, x64):
    net, params, (x, t, s, _) = prepare(member, times="start", decoder_depth=2)

    def values(params):
        return [
            [net.clone(tap=i).apply(params, x, t, z, method="features") for z in (t, s)]
            for i in range(3)
        ]

    for block, (here, there) in enumerate(run(values, params)):
        assert (relative(there, here) > 1e-3) == (block >= 1), block


@pytest.mark.parametrize("member", ["dit", "dit scan"])
def test_the_output_layer_belongs_to_the_decoder(member, x64):
    net, params, (x, t, s, _) = prepare(member, times="start", decoder_depth=1)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            0 * leaf  # all gates of all blocks are shut
            if "block" in path[1].key and "modulation" in path[2].key
            else leaf
        ),
        params,
    )

    def values(params):
        return [net.apply(params, x, *times) for times in ((t, s), (s, s), (t, t))]

    out, other_start, other_destination = run(values, params)
    assert_equal(other_start, out)
    assert relative(other_destination, out) > 1e-2


@pytest.mark.parametrize("member", ["mlp", "dit"])
def test_zero_duration_starts_as_the_velocity_network(member, x64):
    velocity, params, (x, t, s, cond) = prepare(member, times="start", num_classes=3)
    net = velocity.clone(times="start_duration", zero_init_duration=True)

    def values(params, key):
        grafted = graft(params, net.init(key, x, t, s, cond))
        old = velocity.apply(params, x, t, t, cond)
        gradient = jax.grad(lambda p: jnp.sum(net.apply(p, x, t, s, cond) ** 2))
        return old, net.apply(grafted, x, t, s, cond), gradient(grafted), grafted

    old, new, gradient, grafted = run(values, params, jax.random.key(0))
    assert np.linalg.norm(old) > 0.1
    assert_equal(new, old)
    # It can be learned: only the last layer starts at zero.
    last = gradient["params"]["conditioning"]["duration"]["Dense_1"]["kernel"]
    assert np.all(np.abs(last) > 1e-12)
    duration = "['params']['conditioning']['duration']"
    assert ungrafted(params, grafted) == tuple(
        f"{duration}['Dense_{i}']['{n}']" for i in (0, 1) for n in ("bias", "kernel")
    )


@pytest.mark.parametrize(
    ("member", "taps"), [("mlp", range(-3, 3)), ("dit", [0]), ("dit scan", [1, -3])]
)
def test_features_are_those_of_the_shorter_network(member, taps, x64):
    net, params, args = prepare(member, velocity_head=1)

    def pair(params, tap):
        depth = tap % net.depth + 1
        own = {n: p for n, p in params["params"].items() if "velocity" not in n}
        if "blocks" in own:
            own["blocks"] = jax.tree.map(lambda p: p[:depth], own["blocks"])
        short = net.clone(depth=depth, velocity_head=0, tap=-1)
        tapped = net.clone(tap=tap).apply(params, *args, method="outputs")
        return tapped, short.apply({"params": own}, *args, method="features")

    def values(params):
        return net.apply(params, *args), [pair(params, tap) for tap in taps]

    u, pairs = run(values, params)
    for tapped, expected in pairs:
        assert_equal(tapped.features, expected)
        assert_equal(tapped.u, u)  # the tap changes nothing else
    assert all(relative(pairs[0][1], p[1]) > 1e-2 for p in pairs[1:3])


def test_the_last_features_make_the_velocity(x64):
    net, params, args = prepare("mlp")
    out = run(lambda p: net.apply(p, *args, method="outputs"), params)
    last = params["params"]["output"]
    h = jax.nn.silu(out.features)
    assert_equal(out.u, h @ last["kernel"] + last["bias"][None])


@pytest.mark.parametrize("member", ["mlp", "dit"])
def test_features_cost_nothing_beside_the_forward_pass(member):
    make, event = MEMBERS[member]
    net = make(tap=0)
    args = inputs(event)
    params = jax.eval_shape(net.init, jax.random.key(0), *args)

    def flops(function):
        return jax.jit(function).lower(params).compile().cost_analysis()["flops"]

    def forward(p):
        return net.apply(p, *args)

    def two_calls(p):
        return forward(p), net.apply(p, *args, method="features")

    def one_call(p):
        return net.apply(p, *args, method="outputs")[::2]

    def gradient(function):
        return jax.grad(lambda p: sum(map(jnp.sum, function(p))))

    alone = flops(forward)
    assert flops(two_calls) <= 1.02 * alone
    assert flops(lambda p: net.apply(p, *args, method="features")) < 0.9 * alone
    # Only in one call is the backward pass shared.
    backward = flops(gradient(lambda p: (forward(p),)))
    assert flops(gradient(one_call)) <= 1.02 * backward


def test_the_second_head_costs_nothing_where_it_is_not_used():
    net, event = small_mlp(), MEMBERS["mlp"][1]
    args = inputs(event)

    def flops(net):
        params = jax.eval_shape(net.init, jax.random.key(0), *args)
        forward = jax.jit(net.apply).lower(params, *args).compile()
        return forward.cost_analysis()["flops"]

    assert flops(net.clone(velocity_head=2)) == flops(net)


@pytest.mark.parametrize("member", ["mlp", "dit"])
def test_out_features_are_further_channels(member, x64):
    net, params, args = prepare(member, out_features=6)
    plain = net.clone(out_features=None)
    channels = args[0].shape[-1]
    own = params["params"]
    output = jax.tree.map(
        lambda p: p.reshape((*p.shape[:-1], -1, 6))[..., :channels].reshape(
            (*p.shape[:-1], -1)
        ),
        own["output"],
    )

    def values(params, fewer):
        return net.apply(params, *args), plain.apply({"params": fewer}, *args)

    u, expected = run(values, params, own | {"output": output})
    assert_equal(u[..., :channels], expected)
    assert u.shape == (*args[0].shape[:-1], 6)


def test_the_same_parameters_in_float32_are_a_target():
    net = small_dit(depth=1, dtype=jnp.bfloat16)
    wide = net.clone(dtype=jnp.float32)
    x, t, s = inputs((4, 4, 2))
    t, s = jnp.minimum(t, s), jnp.maximum(t, s)
    path = interpolants.Path(x=x, t=t, v=jnp.sin(x), x0=x, x1=x, cond=None)

    def loss(params):
        u, target = (functools.partial(n.apply, params) for n in (net, wide))
        return objectives.mean_flow(u, path, s, target=target).sum()

    def by_hand(params):
        rates = (path.v, jnp.ones_like(t), jnp.zeros_like(s))
        slope = jax.jvp(functools.partial(wide.apply, params), (x, t, s), rates)[1]
        goal = path.v + (s - t)[:, None, None, None] * slope
        residual = net.apply(params, x, t, s) - jax.lax.stop_gradient(goal)
        return jnp.square(residual).mean((1, 2, 3)).sum()

    def both(params):
        return [jax.value_and_grad(f)(params) for f in (loss, by_hand)]

    (value, gradient), expected = run(both, initialise(net, x, t, s))
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    assert {g.dtype for g in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    errors = jax.tree.map(relative, gradient, expected[1])
    assert max(jax.tree.leaves(errors)) < 1e-3


def test_log_variance_starts_at_zero_and_sees_both_times(x64):
    net = LogVariance(width=8, **float64())
    _, t, s = inputs(())
    out, params = jax.jit(net.init_with_output)(jax.random.key(0), t, s)
    np.testing.assert_array_equal(out, np.zeros(4))
    loss = 1 + jnp.arange(4.0)
    terms = penalties.Terms(jnp.sqrt(loss)[:, None], t, s, jnp.zeros((4, 1)))

    def value(params):
        return penalties.learned(functools.partial(net.apply, params))(terms).sum()

    start, gradient = run(jax.value_and_grad(value), params)
    np.testing.assert_allclose(start, loss.sum(), rtol=1e-12)
    # d/dw of exp(-w) l + w at w = 0
    last = gradient["params"]["output"]["bias"]
    np.testing.assert_allclose(last, [(1 - loss).sum()], rtol=1e-12)

    params = jax.tree.map(lambda p: p + 0.3, params)
    pairs = ((t, s), (t, s + 0.3), (t + 0.3, s + 0.3))
    w = run(lambda p: [net.apply(p, *pair) for pair in pairs], params)
    assert relative(w[1], w[0]) > 1e-3
    assert relative(w[2], w[0]) > 1e-3
    narrow = jax.eval_shape(LogVariance(width=8).apply, params, t, s)
    assert (narrow.shape, narrow.dtype) == ((4,), jnp.float64)


ERRORS = {
    "no second head": ({}, {}, "heads", "`heads` needs a network with `velocity_head`"),
    "long head": ({"velocity_head": 4}, {}, "heads", r"lie in \[0, 3\].*got 4"),
    "negative head": ({"velocity_head": -1}, {}, "heads", r"lie in \[0, 3\].*got -1"),
    "decoder sees t": ({"decoder_depth": 1}, {}, "", "needs .*times='start'; got 'st"),
    "all decoder": (
        {"decoder_depth": 3, "times": "start"},
        {},
        "",
        r"`decoder_depth` must lie in \[0, 2\] with `depth`=3; got 3",
    ),
    "zero start": (
        {"zero_init_duration": True, "times": "start"},
        {},
        "",
        "`zero_init_duration` needs .*times='start_duration'; got 'start'",
    ),
    "zero duration": (
        {"zero_init_duration": True, "times": "duration"},
        {},
        "",
        "`zero_init_duration` needs .*got 'duration'",
    ),
    "depth": ({"depth": 0}, {}, "", "`depth` must be at least 1; got 0"),
    "times": ({"times": "end"}, {}, "", "`times` must be one of .*got 'end'"),
    "tap": ({"tap": 3}, {}, "features", r"`tap` must lie in \[-3, 2\].*got 3"),
    "out_features": ({"out_features": 0}, {}, "", "at least 1 or None; got 0"),
    "no guidance": ({"guidance": True}, None, "", "dict of 'scale'.*NoneType"),
    "bare label": ({"guidance": True}, [0] * 4, "", "must be a dict of 'scale'.*got"),
    "no interval": ({"guidance": True}, {"interval": ...}, "", r"got \['scale'\]"),
    "unknown key": ({"guidance": True}, {"omega": [1.0]}, "", r"got \['interval', 'om"),
    "label": ({"guidance": True}, {"label": [0] * 4}, "", r"`cond\['label'\]` needs"),
    "scale": (
        {"guidance": True},
        {"scale": [1.0]},
        "",
        r"`cond\['scale'\]` must have shape \(4,\); got \(1,\)",
    ),
    "interval": (
        {"guidance": True},
        {"interval": [0.0, 1.0]},
        "",
        r"`cond\['interval'\]` must have shape \(4, 2\); got \(2,\)",
    ),
    "whole scale": (
        {"guidance": True},
        {"scale": [1] * 4},
        "",
        "floating dtype; got i",
    ),
    "zero scale": ({"guidance": True}, {"scale": [0.0] * 4}, "", "be positive; got 0"),
    "guided plain": ({"num_classes": 2}, {}, "", "`cond` must be an array of labels"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name, untyped):
    options, changes, method, message = ERRORS[name]
    make, event = MEMBERS["mlp"]
    cond = {"scale": jnp.ones(4), "interval": jnp.ones((4, 2))}
    if isinstance(changes, dict):
        cond |= {k: jnp.array(v) for k, v in changes.items() if v is not ...}
        cond = {k: v for k, v in cond.items() if changes.get(k) is not ...}
    else:
        cond = changes and jnp.array(changes)
    net = make(**options)
    if not (net.guidance or net.num_classes):
        cond = None
    with pytest.raises(ValueError, match=message):
        net.init(jax.random.key(0), *inputs(event), cond, method=method or "__call__")
