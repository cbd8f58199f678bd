"""What the networks condition on: times, labels, guidance, in context or not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import guidance, interpolants
from flowjax.networks import (
    Conditioning,
    TimeEmbedding,
)
from tests.comparing import relative
from tests.network_options import (
    CONTEXT,
    MEMBERS,
    assert_equal,
    float64,
    inputs,
    prepare,
    run,
    small_dit,
)


@pytest.mark.parametrize(
    ("times", "names"),
    [
        ("start", {"start"}),
        ("duration", {"duration"}),
        ("start_duration", {"start", "duration"}),
    ],
)
def test_what_is_seen_of_the_times(times, names, x64):
    net, params, (x, t, s, _) = prepare("mlp", times=times)
    assert params["params"]["conditioning"].keys() == names

    def values(params):
        pairs = ((t, s), (t, s + 0.5), (t + 0.5, s + 0.5))
        return [net.apply(params, x, *pair) for pair in pairs]

    out, other_duration, other_start = run(values, params)
    for name, other in (("duration", other_duration), ("start", other_start)):
        error = relative(other, out)
        assert error > 1e-3 if name in names else error < 1e-12, name


def test_conditioning_by_hand(x64):
    options = float64()
    net = Conditioning(8, num_classes=3, guidance=True, **options)
    t, s = jnp.array([0.1, 0.6]), jnp.array([0.9, 0.2])
    cond = {
        "label": jnp.array([2, 3]),
        "scale": jnp.array([1.0, 4.0]),
        "interval": jnp.array([[0.0, 0.7], [0.3, 1.0]]),
    }
    params = jax.jit(net.init)(jax.random.key(0), t, s, cond)
    numbers = {
        "start": [0.1, 0.6],
        "duration": [0.8, -0.4],
        "guidance_scale": [0.0, 0.75],
        "guidance_low": [0.0, 0.3],
        "guidance_high": [0.7, 1.0],
    }
    own = params["params"]
    expected = own["labels"][jnp.array([2, 3])]
    for name, number in numbers.items():
        embed = TimeEmbedding(8, **options)
        expected += embed.apply({"params": own[name]}, jnp.array(number))
    assert own.keys() == numbers.keys() | {"labels"}
    # The label may be left out: all null.
    absent = {key: cond[key] for key in ("scale", "interval")}
    null = cond | {"label": jnp.array([3, 3])}
    conditions = (cond, null, absent, cond | {"label": None})
    out = run(lambda p: [net.apply(p, t, s, c) for c in conditions], params)
    assert_equal(out[0], expected)
    assert_equal(out[2:], [out[1]] * 2)


NULL = {"label": 3, "scale": 1.0, "interval": jnp.array([[0.0, 1.0]], jnp.float32)}


def test_separate_conditions_sum_to_the_joint_one(x64):
    net = Conditioning(8, num_classes=3, guidance=True, **float64())
    t, s = jnp.array([0.1, 0.6]), jnp.array([0.9, 0.2])
    cond = {"scale": jnp.array([1.5, 4.0]), "interval": jnp.array([[0, 0.7], [0.3, 1]])}
    params = jax.jit(net.init)(jax.random.key(0), t, s, cond)

    def both(params):
        separate = net.clone(separate=True).apply(params, t, s, cond)
        return separate, net.apply(params, t, s, cond)

    separate, joint = run(both, params)
    assert separate.shape == (2, 6, 8)
    assert_equal(separate.sum(1), joint)


def test_every_condition_enters_by_its_tokens(x64):
    net, params, (x, t, s, cond) = prepare("dit", **CONTEXT | {"velocity_head": 0})
    own = params["params"]
    assert own["context"].shape == (2 * 7, 8)
    assert own["block_0"]["constant_modulation"].shape == (1, 1, 6 * 8)
    assert "modulation" not in own
    interval = cond["interval"]
    changed = [
        (t + 0.2, s + 0.2, cond),
        (t, s + 0.2, cond),
        (t, s, cond | {"label": (cond["label"] + 1) % 4}),
        (t, s, cond | {"vector": cond["vector"] + 1}),
        (t, s, cond | {"scale": 2 * cond["scale"]}),
        (t, s, cond | {"interval": interval.at[:, 0].add(0.1)}),
        (t, s, cond | {"interval": interval.at[:, 1].add(0.1)}),
    ]

    def values(params):
        outputs = functools.partial(net.apply, params, x, method="outputs")
        return outputs(t, s, cond), [outputs(*other).u for other in changed]

    out, others = run(values, params)
    assert out.features.shape == (4, 4, 8)  # of the patches alone
    assert all(relative(other, out.u) > 1e-4 for other in others)
    # Nothing but attention carries them: with its gates shut they are not seen.
    shut = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            leaf.at[..., 2 * 8 : 3 * 8].set(0)
            if path[-1].key == "constant_modulation"
            else leaf
        ),
        params,
    )
    out, others = run(values, shut)
    for other in others:
        assert_equal(other, out.u)


def test_context_excludes_a_decoder():
    net = small_dit(depth=2, times="start", decoder_depth=1, context_tokens=2)
    with pytest.raises(ValueError, match="0 with `decoder_depth`; got 2 with 1"):
        net.init(jax.random.key(0), *inputs((4, 4, 2)))
    with pytest.raises(ValueError, match=r"at least 0.*got -1"):
        small_dit(depth=2, context_tokens=-1).init(
            jax.random.key(0), *inputs((4, 4, 2))
        )


def test_guidance_takes_the_condition(x64):
    net, params, (x, t, s, cond) = prepare("mlp", guidance=True, num_classes=3)
    u = jax.jit(functools.partial(net.apply, params))
    unconditional = {
        "label": jnp.full(4, 3),
        "scale": jnp.ones(4),
        "interval": jnp.array([[0.0, 1.0]] * 4),
    }
    conditional, null = u(x, t, s, cond), u(x, t, s, unconditional)
    guided = guidance.classifier_free(u, scale=3.0, null=NULL)
    assert_equal(guided(x, t, s, cond), null + 3 * (conditional - null))

    # One number for a whole entry of the condition will do.
    dropped = guidance.drop_condition(
        jax.random.key(0), cond, null=NULL | {"interval": 0.5}, probability=1.0
    )
    assert_equal(dropped, unconditional | {"interval": jnp.full((4, 2), 0.5)})

    path = interpolants.Path(x=x, t=t, v=x, x0=x, x1=x, cond=cond)
    kappa = 1 - 1 / cond["scale"]
    target = guidance.guided_velocity(u, path, null=NULL, omega=1.0, kappa=kappa)
    rise = u(x, t, t, cond) - u(x, t, t, unconditional)
    moved = np.asarray(cond["label"] != 3)
    assert_equal(target[moved], (x + kappa[:, None] * rise)[moved])


GIVEN = {"vector_features": 2, "array_channels": 1, "num_classes": 3}


@pytest.mark.parametrize("member", MEMBERS)
def test_a_row_reads_what_it_is_given(member, x64):
    net, params, (x, t, s, cond) = prepare(member, **GIVEN)
    assert not cond["given"][1]

    def spoilt(name):
        return net.apply(params, x, t, s, cond | {name: cond[name] + 1})

    out, vector, array = run(
        lambda: (net.apply(params, x, t, s, cond), spoilt("vector"), spoilt("array"))
    )
    for other in (vector, array):
        change = np.abs(np.asarray(other - out)).reshape(4, -1).max(1)
        assert change[1] == 0
        assert (change[[0, 2, 3]] > 1e-6).all()


@pytest.mark.parametrize("member", ["mlp", "dit"])
def test_what_is_left_out_is_given_to_no_row(member, x64):
    net, params, (x, t, s, cond) = prepare(member, **GIVEN)
    nothing = guidance.drop_condition(
        jax.random.key(0),
        cond,
        null={"label": 3, "vector": 0.0, "array": 0.0, "given": False},
        probability=1.0,
    )
    conditions = (nothing, None, {"label": nothing["label"]}, {"given": cond["given"]})
    dropped, *others = run(lambda: [net.apply(params, x, t, s, c) for c in conditions])
    assert_equal(others, [dropped] * 3)


@pytest.mark.parametrize("label", [-1, -2, 4, 7])
def test_a_label_off_the_table_known_late_gives_nan(label, x64):
    net, params, (x, t, s, _) = prepare("mlp", num_classes=3)
    out = jax.jit(net.apply)(params, x, t, s, jnp.array([0, label, 3, 1]))
    np.testing.assert_array_equal(np.isnan(out).any(1), [False, True, False, False])


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        ({"vector": jnp.zeros((4, 3))}, r"`cond\['vector'\]` must have shape \(4, 2\)"),
        ({"array": jnp.zeros((4, 2))}, r"`cond\['array'\]` must have shape \(4, 1\)"),
        ({"vector": jnp.zeros((4, 2), int)}, "must have a floating dtype"),
        ({"given": jnp.zeros(4)}, "must have dtype bool"),
        ({"vectors": jnp.zeros((4, 2))}, "dict of 'label', 'vector', 'array', 'given'"),
        (jnp.zeros(4, int), "must be a dict of 'label', 'vector'"),
    ],
)
def test_other_conditions_are_refused(cond, message, untyped, x64):
    net, params, (x, t, s, _) = prepare("mlp", **GIVEN)
    with pytest.raises(ValueError, match=message):
        net.apply(params, x, t, s, cond)
