"""Laws of the networks: shapes, forward mode, sharding, conditions, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flowjax.networks import MLP, DiT, sinusoidal
from flowjax.networks.dit import attention, layer_norm, patchify, unpatchify
from flowjax.networks.embeddings import position_table
from tests.comparing import relative
from tests.network_options import float64, initialise, inputs

small_dit = functools.partial(DiT, patch_size=2, width=16, depth=2, num_heads=2)
small_mlp = functools.partial(MLP, width=16, depth=2)

# Each member: a factory and the shape of one example.
MEMBERS = {
    "mlp": (small_mlp, (3,)),
    "dit": (small_dit, (4, 6, 3)),
    "dit qk_norm": (functools.partial(small_dit, qk_norm=True), (4, 4, 1)),
    "dit context": (functools.partial(small_dit, context_tokens=2), (4, 4, 1)),
    "dit remat": (functools.partial(small_dit, remat=True), (4, 4, 1)),
    "dit scan": (functools.partial(small_dit, scan=True), (4, 4, 1)),
    "dit scan remat": (functools.partial(small_dit, scan=True, remat=True), (4, 4, 1)),
}
members = pytest.mark.parametrize("member", MEMBERS)
# Where a program is compiled: `test_scan_and_remat...` covers the other combinations.
kinds = pytest.mark.parametrize(
    "member", ["mlp", "dit qk_norm", "dit context", "dit scan remat"]
)


@members
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("given", ["float32", "bfloat16"])
def test_shape_and_dtype(member, compute, given):
    make, event = MEMBERS[member]
    net = make(dtype=jnp.dtype(compute), num_classes=3)
    x, t, s = inputs(event, dtype=given)
    params = jax.eval_shape(net.init, jax.random.key(0), x, t, s)
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    out = jax.eval_shape(net.apply, params, x, t, s, jnp.zeros(len(x), jnp.uint8))
    assert (out.shape, out.dtype) == (x.shape, jnp.float32)


@members
def test_wider_states_come_back_wide(member, x64):
    make, event = MEMBERS[member]
    x, t, s = inputs(event)
    params = jax.eval_shape(make().init, jax.random.key(0), x, t, s)
    out = jax.eval_shape(make().apply, params, x, t, s)
    assert x.dtype == out.dtype == jnp.float64
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@kinds
def test_is_zero_at_initialisation(member):
    make, event = MEMBERS[member]
    x, t, s = inputs(event)
    out, params = jax.jit(make().init_with_output)(jax.random.key(0), x, t, s)
    np.testing.assert_array_equal(out, jnp.zeros_like(x))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        if "modulation" in name or "output" in name:  # every gate is shut
            assert not np.any(leaf), name
        elif "kernel" in name:
            assert np.any(leaf), name


@kinds
def test_half_precision_is_close(member):
    make, event = MEMBERS[member]
    x, t, s = inputs(event)
    params = initialise(make(), x, t, s)

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_tangent(net):
        u = functools.partial(net.apply, params)
        return jax.jvp(u, (x, t, s), (x, jnp.ones_like(t), jnp.zeros_like(s)))

    exact = value_and_tangent(make())
    half = value_and_tangent(make(dtype=jnp.bfloat16))
    for a, b in zip(half, exact, strict=True):
        assert a.dtype == jnp.float32
        # eight significant bits, a few roundings per layer
        assert 0 < relative(a, b) < 0.03


@kinds
def test_jvp_is_the_central_difference(member, x64):
    make, event = MEMBERS[member]
    net = make(**float64())
    primals = inputs(event)
    u = functools.partial(net.apply, initialise(net, *primals))
    steps = 2e-4 * jnp.array([-2.0, -1.0, 1.0, 2.0])
    weights = jnp.array([1.0, -8.0, 8.0, -1.0]) / (12 * 2e-4)  # of fourth order

    @jax.jit
    def both(tangents):
        def moved(step):
            return u(*(z + step * d for z, d in zip(primals, tangents, strict=True)))

        difference = jnp.tensordot(weights, jax.lax.map(moved, steps), axes=1)
        return jax.jvp(u, primals, tangents)[1], difference

    directions = inputs(event, seed=5)
    for wanted in ("x", "t", "s", "xts"):
        tangents = (
            d if name in wanted else jnp.zeros_like(d)
            for name, d in zip("xts", directions, strict=True)
        )
        tangent, difference = both(tuple(tangents))
        assert np.linalg.norm(difference) > 1e-2, wanted
        assert relative(tangent, difference) < 1e-9, wanted


def stack_blocks(params):
    """The parameters of a looped DiT as those of a scanned one."""
    own = dict(params["params"])
    names = sorted(n for n in own if n.startswith("block_"))
    blocks = [own.pop(n) for n in names]
    own["blocks"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    return {"params": own}


def test_scan_and_remat_are_the_same_function(x64):
    x, t, s = inputs((4, 4, 1))

    @functools.partial(jax.jit, static_argnums=0)
    def loss_and_gradient(net, params):
        def loss(params):
            u = functools.partial(net.apply, params)
            tangents = (jnp.sin(x), jnp.ones_like(t), jnp.zeros_like(s))
            out, tangent = jax.jvp(u, (x, t, s), tangents)
            return jnp.sum(out**2) + jnp.sum(tangent**2)  # gradient of the tangent too

        return jax.value_and_grad(loss)(params)

    plain = small_dit(**float64())
    params = initialise(plain, x, t, s)
    value, gradient = loss_and_gradient(plain, params)
    for options in ({"remat": True}, {"scan": True}, {"scan": True, "remat": True}):
        net = small_dit(**float64(**options))
        convert = stack_blocks if "scan" in options else (lambda p: p)
        assert jax.tree.map(jnp.shape, convert(params)) == jax.tree.map(
            jnp.shape, jax.eval_shape(net.init, jax.random.key(0), x, t, s)
        )
        other_value, other_gradient = loss_and_gradient(net, convert(params))
        np.testing.assert_allclose(other_value, value, rtol=1e-12)
        errors = jax.tree.map(relative, other_gradient, convert(gradient))
        assert max(jax.tree.leaves(errors)) < 1e-11


@kinds
def test_gradient_reaches_every_parameter(member, x64):
    make, event = MEMBERS[member]
    net = make(**float64(), num_classes=2)
    x, t, s = inputs(event)
    labels = jnp.array([0, 1, 2, 2])
    params = initialise(net, x, t, s)
    gradient_of = jax.jit(
        jax.grad(lambda p: jnp.sum(net.apply(p, x, t, s, labels) ** 2))
    )
    gradient = gradient_of(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        # every single entry: no parameter is dead by construction
        assert np.all(np.abs(leaf) > 1e-12), jax.tree_util.keystr(path)


@pytest.mark.parametrize("member", ["mlp", "dit"])
def test_null_and_unknown_labels(member):
    make, event = MEMBERS[member]
    net = make(num_classes=3)
    x, t, s = inputs(event)
    params = initialise(net, x, t, s)
    apply = jax.jit(net.apply)
    null = apply(params, x, t, s)
    # the last label does not exist, which nobody can know while tracing
    out = apply(params, x, t, s, jnp.array([3, 0, 2, 4]))
    np.testing.assert_allclose(out[0], null[0], rtol=1e-5, atol=1e-6)
    assert relative(out[1], null[1]) > 1e-2
    assert relative(out[2], null[2]) > 1e-2
    assert np.isnan(out[3]).all()


@kinds
def test_rows_are_independent(member):
    make, event = MEMBERS[member]
    net = make(num_classes=3)
    x, t, s = inputs(event)
    labels = jnp.array([0, 1, 2, 3])
    params = initialise(net, x, t, s)
    apply = jax.jit(net.apply)
    before = apply(params, x, t, s, labels)
    after = apply(
        params,
        x.at[1:].set(9.0),
        t.at[1:].set(0.5),
        s.at[1:].set(0.25),
        labels.at[1:].set(2),
    )
    np.testing.assert_array_equal(before[0], after[0])
    assert np.all(np.abs(after[1:] - before[1:]) > 0)


@kinds
def test_sharded_batch_needs_no_communication(member, x64):
    make, event = MEMBERS[member]
    net = make(**float64(), num_classes=3)
    x, t, s = inputs(event, batch=16)
    labels = jnp.arange(16) % 4
    params = initialise(net, x, t, s)
    expected = jax.jit(net.apply)(params, x, t, s, labels)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    placed = jax.device_put((x, t, s, labels), rows)
    forward = jax.jit(net.apply, out_shardings=rows)
    compiled = forward.lower(jax.device_put(params, everywhere), *placed).compile()
    program = compiled.as_text()
    for collective in ("all-reduce", "all-gather", "all-to-all", "permute"):
        assert collective not in program
    out = compiled(jax.device_put(params, everywhere), *placed)
    assert out.sharding.is_equivalent_to(rows, out.ndim)
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)


def test_dit_accepts_other_image_sizes():
    net = small_dit()
    params = initialise(net, *inputs((4, 4, 3)))
    x, t, s = inputs((6, 8, 3))
    assert jax.eval_shape(net.apply, params, x, t, s).shape == x.shape


def test_dit_sees_where_a_patch_is():
    net = small_dit()
    x, t, s = inputs((4, 4, 1))
    params = initialise(net, x, t, s)
    out = jax.jit(net.apply)(params, jnp.ones_like(x), t, s)
    assert relative(out[:, :2], out[:, 2:]) > 1e-3
    assert relative(out[:, :, :2], out[:, :, 2:]) > 1e-3


def test_patchify_keeps_a_patch_together():
    x = jnp.arange(2.0 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    patches = patchify(x, 2)
    assert patches.shape == (2, 6, 12)
    np.testing.assert_array_equal(patches[1, 4], x[1, 2:, 2:4].ravel())
    np.testing.assert_array_equal(unpatchify(patches, (2, 3), 2), x)


def test_attention_and_layer_norm_by_hand(x64):
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 4, 5, 3))
    out = attention(*map(jnp.asarray, (q, k, v))).reshape(2, 5, 4, 3)
    for b, h in np.ndindex(2, 4):
        weights = np.exp(q[b, h] @ k[b, h].T / np.sqrt(3))
        expected = weights / weights.sum(1, keepdims=True) @ v[b, h]
        np.testing.assert_allclose(out[b, :, h], expected, rtol=1e-12)
    normed = np.asarray(layer_norm(jnp.asarray(5 * q + 3)))
    np.testing.assert_allclose(normed.mean(-1), 0, atol=1e-12)
    np.testing.assert_allclose(normed.std(-1), 1, rtol=1e-4)


def test_time_features_have_bounded_derivatives(x64):
    t = jnp.linspace(-1.0, 1.0, 101)
    embed = functools.partial(sinusoidal, features=8, max_frequency=10.0)
    features, rates = jax.jvp(embed, (t,), (jnp.ones_like(t),))
    np.testing.assert_allclose((features**2).sum(1), 4, rtol=1e-12)
    frequencies = np.array([1.0, 10 ** (1 / 3), 10 ** (2 / 3), 10.0])
    np.testing.assert_allclose((rates**2).sum(1), (frequencies**2).sum(), rtol=1e-12)
    np.testing.assert_allclose(features[:, :4], np.sin(t[:, None] * frequencies[None]))


def test_positions_are_distinct():
    table = position_table((5, 7), 16)
    assert table.shape == (35, 16)
    distances = np.linalg.norm(table[:, None] - table[None], axis=-1)
    assert (distances[~np.eye(35, dtype=bool)] > 0.1).all()
    np.testing.assert_array_equal(table[3 * 7 + 2, :4], table[3 * 7 + 5, :4])


def changed(**changes):
    good = {
        "x": jnp.zeros((4, 4, 4, 1)),
        "t": jnp.zeros(4),
        "s": jnp.ones(4),
        "cond": None,
    }
    return good | changes


DIT_ERRORS = {
    "not a multiple of the patch": ({}, {"x": (4, 4, 5, 1)}, "multiples of `patch_"),
    "heads": ({"num_heads": 3}, {}, "and of `num_heads`=3; got 16"),
    "positions": ({"width": 18}, {}, "`width` must be a multiple of 4.* got 18"),
    "rank": ({}, {"x": (4, 4)}, r"\[batch, size, \*sizes, channels\]; got \(4, 4"),
    "patch": ({"patch_size": 0}, {}, "`patch_size` must be at least 1; got 0"),
    "channels": ({}, {"x": (4, 4, 4, 2)}, "must give 4 features .* got 8"),
    "vector time": ({}, {"t": (4, 1)}, r"`t` must have shape \[batch\]=\(4,\); got"),
    "short time": ({}, {"s": (3,)}, r"`s` must have shape \[batch\]=\(4,\); got"),
    "cond without classes": ({}, {"cond": [0, 0, 0, 0]}, "`cond` needs .*num_classes"),
    "no classes": ({"num_classes": 0}, {}, "`num_classes` must be at least 1"),
    "long cond": ({"num_classes": 2}, {"cond": [0] * 5}, r"`cond` must have shape"),
    "float cond": ({"num_classes": 2}, {"cond": [0.0] * 4}, "integer dtype; got float"),
    "bool cond": ({"num_classes": 2}, {"cond": [True] * 4}, "integer dtype; got bool"),
    "large cond": ({"num_classes": 2}, {"cond": [0, 1, 2, 3]}, r"\[0, 2\].*from 0 to"),
    "negative cond": ({"num_classes": 2}, {"cond": [0, 1, -1, 0]}, "from -1 to 1"),
    "frequency": ({"max_frequency": 0.5}, {}, "`max_frequency` must be at least 1"),
}


@pytest.mark.parametrize("case", DIT_ERRORS)
def test_dit_errors(case, untyped):
    options, changes, message = DIT_ERRORS[case]
    changes = {
        name: jnp.asarray(value) if name == "cond" else jnp.zeros(value)
        for name, value in changes.items()
    }
    net = small_dit(num_classes=options.get("num_classes") or None)
    params = jax.eval_shape(net.init, jax.random.key(0), **changed())
    with pytest.raises(ValueError, match=message):
        small_dit(**options).apply(params, **changed(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": (4, 2, 3)}, "must give 3 features to the first layer.* got 6"),
        ({"x": (4,)}, r"`x` must have shape \[batch, \*sizes, dim\]; got \(4,\)"),
        ({"x": (4, 5)}, "must give 3 features to the first layer.* got 5"),
        ({"t": ()}, r"`t` must have shape \[batch\]=\(4,\); got \(\)"),
        ({"cond": (4,)}, "`cond` needs a network with `num_classes`"),
    ],
)
def test_mlp_errors(changes, message, untyped):
    good = changed(x=jnp.zeros((4, 3)))
    params = jax.eval_shape(small_mlp().init, jax.random.key(0), **good)
    bad = {name: jnp.zeros(shape) for name, shape in changes.items()}
    with pytest.raises(ValueError, match=message):
        small_mlp().apply(params, **(good | bad))


@pytest.mark.parametrize("name", ["x", "t", "s"])
@pytest.mark.parametrize("member", ["mlp", "dit"])
def test_integer_states_and_times_are_refused(member, name, untyped):
    make, event = MEMBERS[member]
    good = dict(zip("xts", inputs(event), strict=True))
    bad = good | {name: good[name].astype(jnp.int32)}
    with pytest.raises(ValueError, match=f"`{name}` must have a floating dtype"):
        make().init(jax.random.key(0), **bad)


def test_labels_must_be_an_array():
    with pytest.raises(ValueError, match="`cond` must be an array of labels"):
        small_mlp(num_classes=2).init(
            jax.random.key(0), **changed(x=jnp.zeros((4, 3)), cond={"label": 0})
        )


@pytest.mark.parametrize("features", [2, 7])
def test_time_features_error(features):
    with pytest.raises(ValueError, match=f"at least 4; got {features}"):
        sinusoidal(jnp.zeros(3), features=features)
