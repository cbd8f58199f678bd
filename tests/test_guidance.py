"""Guidance: its algebra, its fixed points, its intervals and the dropping of labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import guidance
from flowjax.interpolants import Path, linear, sample_path

pytestmark = pytest.mark.usefixtures("x64")

NULL = 3
TIMES = (0.0, 0.2, 0.5, 0.6, 0.8, 1.0)
LABELS = (0, 1, 2, 0, 1, 2)


def velocity(x, t, cond):
    shift = jnp.asarray([1.0, -2.0, 0.5, 0.25])[cond]
    return jnp.sin(x) + (shift * (1 + t))[:, None]


def average_velocity(x, t, s, cond):
    return velocity(x, t, cond) + (s**2)[:, None]


def batch():
    x = jnp.linspace(-1, 1, 12).reshape(6, 2)
    return x, jnp.asarray(TIMES), jnp.asarray(LABELS)


def path(cond="labels"):
    x, t, labels = batch()
    cond = labels if isinstance(cond, str) else cond
    return sample_path(linear(), x, jnp.cos(x), t, cond)


def fields():
    """Both kinds of field, with what comes between x and cond."""
    x, t, cond = batch()
    return [
        (velocity, (x, t), cond),
        (average_velocity, (x, t, jnp.flip(t)), cond),
    ]


@pytest.mark.parametrize("kind", [0, 1], ids=["velocity", "average"])
def test_guidance_is_linear_in_the_scale(kind):
    field, where, cond = fields()[kind]
    conditional = field(*where, cond)
    unconditional = field(*where, jnp.full_like(cond, NULL))

    def guided(scale):
        return guidance.classifier_free(field, scale=scale, null=NULL)(*where, cond)

    np.testing.assert_allclose(guided(0.0), unconditional, atol=1e-15)
    np.testing.assert_allclose(guided(1.0), conditional, atol=1e-15)
    np.testing.assert_allclose(
        guided(2.5), 2.5 * conditional - 1.5 * unconditional, atol=1e-14
    )
    rows = jnp.arange(6.0)
    expected = unconditional + rows[:, None] * (conditional - unconditional)
    np.testing.assert_allclose(guided(rows), expected, atol=1e-14)
    np.testing.assert_allclose(guided(jnp.asarray(2.5)), guided(2.5), atol=1e-14)


def test_guidance_shifts_a_gaussian_mean():
    """For N(m, s^2) against N(0, s^2) the guided flow is that of N(scale m, s^2)."""

    def gaussian(x, t, mean):
        t, mean = t[:, None], mean[:, None]
        variance = (0.5 * t) ** 2 + (1 - t) ** 2
        return mean + (0.25 * t - (1 - t)) / variance * (x - t * mean)

    x, t, _ = batch()
    mean = jnp.linspace(-1, 2, 6)
    guided = guidance.classifier_free(gaussian, scale=3.0, null=0.0)
    np.testing.assert_allclose(guided(x, t, mean), gaussian(x, t, 3 * mean), atol=1e-14)


@pytest.mark.parametrize("kind", [0, 1], ids=["velocity", "average"])
def test_outside_the_closed_interval_the_field_is_untouched(kind):
    field, where, cond = fields()[kind]
    conditional = field(*where, cond)
    everywhere = guidance.classifier_free(field, scale=2.0, null=NULL)(*where, cond)
    limited = jax.jit(
        guidance.classifier_free(field, scale=2.0, null=NULL, interval=(0.2, 0.6))
    )(*where, cond)
    inside = np.array([False, True, True, True, False, False])
    np.testing.assert_array_equal(limited[~inside], conditional[~inside])
    np.testing.assert_allclose(limited[inside], everywhere[inside], atol=1e-15)


def test_the_null_evaluation_is_skipped_where_no_row_is_inside():
    calls = []

    def field(x, t, cond):
        jax.debug.callback(lambda: calls.append(1))
        return velocity(x, t, cond)

    x, t, cond = batch()
    guided = jax.jit(
        guidance.classifier_free(field, scale=2.0, null=NULL, interval=(0.3, 0.4))
    )
    for time, expected in ((0.0, 1), (0.35, 2), (0.9, 1)):
        calls.clear()
        guided(x, jnp.full_like(t, time), cond)
        jax.effects_barrier()
        assert len(calls) == expected


def test_null_may_be_a_tree():
    def field(x, t, cond):
        text = cond["text"].sum(axis=-1, keepdims=True)
        return velocity(x, t, cond["label"]) + text

    x, t, labels = batch()
    cond = {"label": labels, "text": jnp.ones((6, 5))}
    empty = jnp.arange(5.0)
    guided = guidance.classifier_free(
        field, scale=2.0, null={"label": NULL, "text": empty}
    )(x, t, cond)
    unconditional = velocity(x, t, jnp.full_like(labels, NULL)) + 10
    expected = 2 * (velocity(x, t, labels) + 5) - unconditional
    np.testing.assert_allclose(guided, expected, atol=1e-14)


def test_guided_field_keeps_the_dtype():
    with jax.enable_x64(False):
        x, t, _ = batch()
        cond = np.asarray(LABELS)  # int64 even here
        for scale in (2.0, jnp.full(6, 2.0)):
            guided = guidance.classifier_free(
                lambda x, t, c: (x * t[:, None]).astype(jnp.bfloat16),
                scale=scale,
                null=NULL,
                interval=(0.1, 0.9),
            )
            assert guided(x, t, cond).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("omega", "kappa"), [(2.0, 0.0), (1.0, 0.5), (0.2, 0.9), (0.3, 0.7), (1.0, 0.0)]
)
def test_fixed_point_has_the_effective_scale(omega, kappa):
    """A table with a number per label takes on its target until nothing moves."""
    data = np.array([1.0, -2.0, 0.5])
    rows, t, x = jnp.asarray([0, 1, 2, NULL]), jnp.full(4, 0.5), jnp.zeros((4, 1))
    # The row whose label is dropped sees the data of all labels.
    v = jnp.asarray([*data, data.mean()])[:, None]

    def train(_, table):
        return guidance.guided_velocity(
            lambda x, t, s, label: table[label],
            Path(x, t, v, x, x, rows),
            null=NULL,
            omega=omega,
            kappa=kappa,
        )

    state = jax.lax.fori_loop(0, 400, train, jnp.zeros((4, 1)))[:, 0]
    unconditional = data.mean()
    scale = omega / (1 - kappa)
    np.testing.assert_allclose(state[NULL], unconditional, atol=1e-14)
    expected = unconditional + scale * (data - unconditional)
    np.testing.assert_allclose(state[:3], expected, atol=1e-13)


def test_guided_velocity_formula_interval_and_dropped_rows():
    labels = jnp.asarray([0, 1, NULL, 0, 1, 2])
    p = path(labels)
    target = guidance.guided_velocity(
        average_velocity, p, null=NULL, omega=0.6, kappa=0.3, interval=(0.2, 0.8)
    )
    own = average_velocity(p.x, p.t, p.t, labels)
    none = average_velocity(p.x, p.t, p.t, jnp.full_like(labels, NULL))
    guided = 0.6 * p.v + 0.3 * own + 0.1 * none
    inside = np.array([False, True, False, True, True, False])
    np.testing.assert_allclose(target[inside], guided[inside], atol=1e-15)
    np.testing.assert_array_equal(target[~inside], p.v[~inside])


def test_guided_velocity_of_a_tree_drops_only_wholly_null_rows():
    labels = jnp.asarray([NULL, NULL, 0, 0, 0, 0])
    text = jnp.zeros((6, 2)).at[1:3].set(1.0)
    p = path({"label": labels, "text": text})
    target = guidance.guided_velocity(
        lambda x, t, s, c: average_velocity(x, t, s, c["label"]),
        p,
        null={"label": NULL, "text": 0.0},
        omega=2.0,
    )
    unchanged = (np.asarray(target) == np.asarray(p.v)).all(axis=1)
    np.testing.assert_array_equal(unchanged, [True] + [False] * 5)


# What conditions are made of, each with its null.
ENTRIES = {
    "label": (jnp.asarray(LABELS), NULL),
    "vector": (jnp.linspace(-1.0, 1.0, 12).reshape(6, 2), jnp.nan),
    "embedding": (jnp.linspace(1.0, 2.0, 18).reshape(6, 3), jnp.asarray([0.0, -1, 0])),
    "image": (jnp.linspace(-1, 1, 6 * 4).reshape(6, 2, 2, 1), jnp.zeros((2, 2, 1))),
    "given": (jnp.ones(6, bool), False),
}
KEPT = {"scale": jnp.linspace(1.0, 3.0, 6), "nested": {"size": jnp.arange(6)}}


@pytest.mark.parametrize("beside", [{}, KEPT], ids=["alone", "beside_others"])
@pytest.mark.parametrize(
    "names", [*((name,) for name in ENTRIES), tuple(ENTRIES)], ids="_".join
)
def test_a_row_is_dropped_as_a_whole_and_known_to_be(key, names, beside):
    cond = {name: ENTRIES[name][0] for name in names} | beside
    null = {name: ENTRIES[name][1] for name in names}
    dropped = guidance.drop_condition(key, cond, null=null, probability=0.5)
    lost = np.asarray(jax.random.bernoulli(key, 0.5, (6,)))
    assert 0 < lost.sum() < 6
    np.testing.assert_array_equal(guidance.is_null(dropped, null=null), lost)
    assert not guidance.is_null(cond, null=null).any()
    for name in names:
        none = np.broadcast_to(null[name], cond[name][lost].shape)
        np.testing.assert_array_equal(dropped[name][lost], none)
        np.testing.assert_array_equal(dropped[name][~lost], cond[name][~lost])
    for name, value in beside.items():
        jax.tree.map(np.testing.assert_array_equal, dropped[name], value)

    target = guidance.guided_velocity(
        lambda x, t, s, c: jnp.ones_like(x), path(dropped), null=null, omega=2.0
    )
    guided = (np.asarray(target) != np.asarray(path().v)).all(axis=1)
    np.testing.assert_array_equal(guided, ~lost)


def test_guidance_leaves_the_entries_that_null_does_not_name():
    x, t, labels = batch()
    cond = (labels, jnp.linspace(0.0, 1.0, 6))
    seen = []

    def field(x, t, c):
        seen.append(c)
        return velocity(x, t, c[0])

    guidance.classifier_free(field, scale=2.0, null=(NULL, None))(x, t, cond)
    (_, with_label), (none, without) = seen
    np.testing.assert_array_equal(none, jnp.full(6, NULL))
    np.testing.assert_array_equal(with_label, without)


@pytest.mark.parametrize(
    ("omega", "kappa", "seen"),
    [
        (2.0, 0.0, ["null"]),
        (1.0, 0.0, []),
        (0.1, 0.9, ["own"]),
        (0.3, 0.7, ["own"]),
        (0.5, 0.4, ["own", "null"]),
    ],
)
def test_guided_velocity_spares_evaluations(omega, kappa, seen):
    calls = []

    def u(x, t, s, cond):
        calls.append("null" if (cond == NULL).all() else "own")
        np.testing.assert_array_equal(t, s)
        return average_velocity(x, t, s, cond)

    guidance.guided_velocity(u, path(), null=NULL, omega=omega, kappa=kappa)
    assert calls == seen


def test_guided_velocity_has_no_gradient():
    def total(a):
        u = lambda x, t, s, c: a * average_velocity(x, t, s, c)  # noqa: E731
        return guidance.guided_velocity(
            u, path(), null=NULL, omega=0.5, kappa=0.4
        ).sum()

    assert jax.grad(total)(1.5) == 0
    assert total(1.5) != total(1.6)


def test_dropping_statistics(key):
    n, probability = 100_000, 0.1
    cond = {"label": jnp.arange(n) % 3, "text": jnp.ones((n, 2))}
    null = {"label": NULL, "text": jnp.asarray([0.0, -1.0])}
    dropped = guidance.drop_condition(key, cond, null=null, probability=probability)
    mask = np.asarray(dropped["label"] == NULL)
    # Five standard deviations of a binomial share.
    tolerance = 5 * np.sqrt(probability * (1 - probability) / n)
    assert abs(mask.mean() - probability) < tolerance
    # Independent rows: neighbours fall together with the squared probability.
    assert abs((mask[1:] & mask[:-1]).mean() - probability**2) < tolerance
    # One mask for all leaves, and the other rows untouched.
    text = np.where(mask[:, None], [[0.0, -1.0]], 1.0)
    np.testing.assert_array_equal(dropped["text"], text)
    np.testing.assert_array_equal(dropped["label"][~mask], cond["label"][~mask])
    assert dropped["label"].dtype == cond["label"].dtype


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_dropping_none_or_all(key, probability):
    cond = jnp.asarray(LABELS)
    dropped = guidance.drop_condition(key, cond, null=NULL, probability=probability)
    np.testing.assert_array_equal(dropped, [NULL] * 6 if probability else cond)


def test_labels_may_be_numpy_integers(key):
    with jax.enable_x64(False):
        labels = np.asarray(LABELS)  # int64 even here
        p = path(labels)
        dropped = guidance.drop_condition(key, labels, null=NULL, probability=0.5)
        assert dropped.dtype == jnp.int32
        options = {"null": NULL, "omega": 2.0}
        target = guidance.guided_velocity(average_velocity, p, **options)
        p = p._replace(cond=jnp.asarray(labels))
        expected = guidance.guided_velocity(average_velocity, p, **options)
        np.testing.assert_array_equal(target, expected)


@pytest.mark.parametrize("interval", [(0.5, 0.2), (-0.1, 1.0), (0.0, 1.1)])
def test_bad_interval(interval):
    with pytest.raises(ValueError, match="`interval` must be"):
        guidance.classifier_free(velocity, scale=2.0, null=NULL, interval=interval)
    with pytest.raises(ValueError, match="`interval` must be"):
        guidance.guided_velocity(
            average_velocity, path(), null=NULL, omega=2.0, interval=interval
        )


@pytest.mark.usefixtures("untyped")
def test_bad_scale():
    x, t, cond = batch()
    with pytest.raises(ValueError, match=r"must have shape \[batch\]; got \(6, 1\)"):
        guidance.classifier_free(velocity, scale=jnp.ones((6, 1)), null=NULL)
    guided = guidance.classifier_free(velocity, scale=jnp.ones(5), null=NULL)
    with pytest.raises(ValueError, match=r"\[batch\]=\(6,\); got \(5,\)"):
        guided(x, t, cond)


def test_missing_condition(key):
    x, t, _ = batch()
    guided = guidance.classifier_free(velocity, scale=2.0, null=NULL)
    for call in (
        lambda: guided(x, t, None),
        lambda: guided(x, t),
        lambda: guidance.guided_velocity(
            average_velocity, path(None), null=NULL, omega=2.0
        ),
        lambda: guidance.drop_condition(key, None, null=NULL, probability=0.1),
    ):
        with pytest.raises(ValueError, match="`cond` must be a condition"):
            call()


def test_bad_null():
    x, t, cond = batch()
    for null, tree, message in (
        (0.5, cond, "must be integer"),
        ({"label": NULL}, cond, "must match the condition"),
        ({"other": NULL}, {"label": cond}, "must match the condition"),
        (jnp.zeros(4), {"text": jnp.ones((6, 5))}, "`null` must broadcast"),
        (None, cond, "must name an entry"),
        ({}, {"label": cond}, "must name an entry"),
        (1, {"given": cond == 1}, "must be True or False"),
    ):
        guided = guidance.classifier_free(velocity, scale=2.0, null=null)
        with pytest.raises(ValueError, match=message):
            guided(x, t, tree)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"omega": 0.0}, "`omega` must be a Python float > 0"),
        ({"omega": float("inf")}, "`omega`"),
        ({"omega": 1.0, "kappa": 1.0}, "`kappa` must be a Python float in"),
        ({"omega": 1.0, "kappa": -0.1}, "`kappa`"),
    ],
)
def test_bad_weights(options, message):
    with pytest.raises(ValueError, match=message):
        guidance.guided_velocity(average_velocity, path(), null=NULL, **options)


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_bad_probability(key, probability):
    with pytest.raises(ValueError, match=r"`probability` must lie in \[0, 1\]"):
        guidance.drop_condition(
            key, jnp.asarray(LABELS), null=NULL, probability=probability
        )


def test_weights_and_intervals_per_row_are_those_of_each_row_alone():
    p = path()
    omega = jnp.linspace(0.5, 2.0, 6)
    kappa = jnp.linspace(0.0, 0.8, 6)
    low, high = jnp.linspace(0.0, 0.4, 6), jnp.linspace(0.9, 0.5, 6)
    together = guidance.guided_velocity(
        average_velocity,
        p,
        null=NULL,
        omega=omega,
        kappa=kappa,
        interval=(low, high),
    )
    for i in range(6):
        alone = guidance.guided_velocity(
            average_velocity,
            p,
            null=NULL,
            omega=float(omega[i]),
            kappa=float(kappa[i]),
            interval=(float(low[i]), float(high[i])),
        )
        np.testing.assert_allclose(together[i], alone[i], atol=1e-14)


@pytest.mark.usefixtures("untyped")
def test_weights_of_another_batch_are_refused():
    with pytest.raises(ValueError, match=r"`kappa` must have shape \[batch\]=\(6,\)"):
        guidance.guided_velocity(
            average_velocity, path(), null=NULL, omega=1.0, kappa=jnp.full(5, 0.5)
        )


@pytest.mark.parametrize("power", [0.0, 1.0, 2.5])
def test_drawn_guidance_has_its_law(key, power):
    """The quantiles of the density w^-power on [1, 8], from 40,000 draws."""
    scale, (low, high) = guidance.draw_guidance(key, 40_000, power=power)
    w = np.linspace(1, 8, 100_001)
    cumulative = np.cumsum(w**-power)
    expected = np.interp([0.1, 0.5, 0.9], cumulative / cumulative[-1], w)
    np.testing.assert_allclose(np.quantile(scale, [0.1, 0.5, 0.9]), expected, rtol=0.03)
    assert scale.min() >= 1
    assert scale.max() <= 8
    np.testing.assert_allclose([low.mean(), high.mean()], [0.25, 0.75], atol=0.005)
    assert low.max() <= 0.5 <= high.min()


def test_autoguidance_extrapolates_from_the_weak_field():
    x, t, labels = batch()
    weak = lambda x, t, c: 0.5 * velocity(x, t, c)  # noqa: E731
    guided = guidance.autoguidance(velocity, weak, scale=3.0)(x, t, labels)
    np.testing.assert_allclose(guided, 2.0 * velocity(x, t, labels), rtol=1e-14)
    inside = guidance.autoguidance(velocity, weak, scale=3.0, interval=(0.4, 0.6))
    outside = np.asarray((t < 0.4) | (t > 0.6))
    assert outside.any()
    np.testing.assert_array_equal(
        inside(x, t, labels)[outside], velocity(x, t, labels)[outside]
    )
