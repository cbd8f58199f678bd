"""Losses beside the identities: moments of groups, spread features, discriminators."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flowjax import analytic, interpolants
from flowjax.interpolants import sample_path
from flowjax.objectives import adversarial, features, moments
from flowjax.objectives.penalties import plus

pytestmark = pytest.mark.usefixtures("x64")

LINEAR = interpolants.linear()
DATA = ([1.0, -0.5], 0.6)
TRUTH = analytic.average_velocity(analytic.gaussian(*map(jnp.array, DATA)), LINEAR)


# Inductive moment matching ------------------------------------------------------------


def pairs_of_paths(key, batch=32, *, group=8, gap=0.5):
    """Points of the same pairs at t and q, and s."""
    key_times, key_noise, key_data = jax.random.split(key, 3)
    t, q, s = moments.grouped_times(key_times, batch, group=group, gap=gap, low=0.2)
    x0 = jax.random.normal(key_noise, (batch, 2))
    x1 = jnp.array([DATA[0]]) + DATA[1] * jax.random.normal(key_data, (batch, 2))
    return sample_path(LINEAR, x0, x1, t), sample_path(LINEAR, x0, x1, q), s


def bent(theta):
    """A field away from the truth: 0 is the truth."""

    def u(x, t, s, cond=None, /):
        return TRUTH(x, t, s) + theta * (1 + jnp.sin(2 * x + s[:, None]))

    return u


def test_discrepancy_is_the_double_sum_over_a_group(key):
    path, nearer, s = pairs_of_paths(key)
    u, other = bent(0.3), bent(-0.2)
    loss = moments.inductive_moment_matching(
        u, path, nearer, s, group=8, target=other, sigma_data=0.7
    )
    y = np.asarray(path.x + (s - path.t)[:, None] * u(path.x, path.t, s))
    z = nearer.x + (s - nearer.t)[:, None] * other(nearer.x, nearer.t, s)
    z, width = np.asarray(z), np.asarray(0.7 * (s - path.t) + 1e-6)
    for row in range(32):
        members = range(row // 8 * 8, row // 8 * 8 + 8)

        def mean_kernel(a, b, members=members, scale=2 * width[row]):
            gaps = [np.linalg.norm(a[i] - b[j]) for i in members for j in members]
            return np.mean(np.exp(-np.maximum(gaps, 1e-8) / scale))

        expected = mean_kernel(y, y) + mean_kernel(z, z) - 2 * mean_kernel(y, z)
        np.testing.assert_allclose(loss[row], expected, rtol=1e-9)


def test_identical_sets_have_no_discrepancy(key):
    path, _, s = pairs_of_paths(key)
    loss = partial(moments.inductive_moment_matching, group=8)
    np.testing.assert_allclose(loss(bent(0.5), path, path, s), 0, atol=1e-14)
    # Sets, not lists: the order within a group does not matter.
    order = jnp.arange(32).reshape(4, 8)[:, ::-1].ravel()
    turned = jax.tree.map(lambda a: a[order], path)
    np.testing.assert_allclose(loss(bent(0.5), path, turned, s), 0, atol=1e-14)
    assert loss(bent(0.5), path, path._replace(x=path.x + 0.1), s).min() > 1e-3


def test_discrepancy_falls_towards_the_truth(key):
    path, _, _ = pairs_of_paths(key, 1024)
    t, q, s = (jnp.full(1024, a) for a in (0.3, 0.6, 0.9))
    path, nearer = (sample_path(LINEAR, path.x0, path.x1, a) for a in (t, q))
    loss = jax.jit(
        lambda theta: moments.inductive_moment_matching(
            bent(theta), path, nearer, s, group=1024, target=TRUTH
        ).mean()
    )
    losses = jnp.stack([loss(theta) for theta in (0.0, 0.1, 0.3, 0.6, 1.0)])
    assert (jnp.diff(losses) > 0).all()
    assert losses[0] < 0.1 * losses[2]
    assert jax.grad(loss)(0.3) > 0 > jax.grad(loss)(-0.3)


def test_discrepancy_does_not_see_a_translation(key):
    path, nearer, s = pairs_of_paths(key)

    def still(x, t, s, cond=None, /):
        return jnp.sin(3 * t)[:, None] + jnp.zeros_like(x)

    loss = partial(moments.inductive_moment_matching, still, s=s, group=8)
    moved = loss(path._replace(x=path.x + 2), nearer._replace(x=nearer.x + 2))
    np.testing.assert_allclose(moved, loss(path, nearer), rtol=1e-9)


def test_groups_do_not_see_each_other(key):
    path, nearer, s = pairs_of_paths(key)
    loss = partial(moments.inductive_moment_matching, bent(0.3), group=8)
    whole = loss(path, nearer, s)
    rows = jax.tree.map(lambda a: a[8:16], (path, nearer, s))
    np.testing.assert_allclose(loss(*rows), whole[8:16], rtol=1e-12)


def test_no_gradient_passes_the_nearer_points(key):
    path, nearer, s = pairs_of_paths(key)

    def loss(theta, other):
        target = None if other is None else bent(other)
        return moments.inductive_moment_matching(
            bent(theta), path, nearer, s, group=8, target=target
        ).sum()

    own = jax.grad(loss)(0.3, None)
    of_field, of_target = jax.grad(loss, (0, 1))(0.3, 0.3)
    assert jnp.abs(own) > 1e-3
    np.testing.assert_allclose(own, of_field, rtol=1e-12)
    assert of_target == 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_coinciding_points_have_finite_gradients(dtype):
    x = jnp.ones((8, 3), dtype)
    t, s = jnp.full(8, 0.5, dtype), jnp.full(8, 0.75, dtype)
    path = sample_path(LINEAR, x, x, t)

    def loss(shift, s):
        def u(x, t, s, cond=None, /):
            return x * shift

        return moments.inductive_moment_matching(u, path, path, s, group=4).sum()

    for end in (s, t):  # also with a kernel of no width
        value, grad = jax.value_and_grad(loss)(jnp.ones((), dtype), end)
        assert value == 0
        assert jnp.isfinite(grad)


def test_rows_of_a_group_must_share_their_times(key):
    path, nearer, s = pairs_of_paths(key)
    loss = partial(moments.inductive_moment_matching, bent(0.3), group=8)
    assert jnp.isfinite(loss(path, nearer, s)).all()
    broken = np.arange(32) // 8 == 1
    for leaf in ("t", "q", "s"):
        move = [a.at[9].add(1e-3 if leaf == n else 0.0) for n, a in
                (("t", path.t), ("q", nearer.t), ("s", s))]  # fmt: skip
        value = loss(path._replace(t=move[0]), nearer._replace(t=move[1]), move[2])
        np.testing.assert_array_equal(jnp.isnan(value), broken)


def test_weight_of_time(key):
    path, nearer, s = pairs_of_paths(key)
    weight = moments.moment_weight(LINEAR, bias=4.0, power=2.0)
    t = path.t
    log_ratio = 2 * jnp.log(t / (1 - t))
    expected = 1 / (1 + jnp.exp(log_ratio - 4.0)) * t / (1 - t) / (t**2 + (1 - t) ** 2)
    np.testing.assert_allclose(weight(t), expected, rtol=1e-12)
    loss = partial(moments.inductive_moment_matching, bent(0.3), path, nearer, s)
    np.testing.assert_allclose(
        loss(group=8, weight=weight), expected * loss(group=8), rtol=1e-12
    )


def test_grouped_times(key):
    t, q, s = moments.grouped_times(key, 4000, group=4, gap=0.25, low=0.1, high=0.9)
    for a in (t, q, s):
        grouped = a.reshape(-1, 4)
        assert (grouped == grouped[:, :1]).all()
        assert len(jnp.unique(a)) == 1000
    assert ((t <= q) & (q <= s) & (s <= 1)).all()
    assert (q > t).all()
    assert t.min() >= 0.1
    assert t.max() <= 0.9
    eta_t, eta_q = (1 - t) / t, (1 - q) / q
    inside = q < s - 1e-12
    assert 0.2 < inside.mean() < 0.8
    np.testing.assert_allclose((eta_t - eta_q)[inside], 0.25, rtol=1e-9)
    assert ((eta_t - eta_q)[~inside] <= 0.25 + 1e-9).all()
    np.testing.assert_allclose(((s - t) / (1 - t)).mean(), 0.5, atol=0.03)
    np.testing.assert_allclose(t.mean(), 0.5, atol=0.03)


def test_moments_name_bad_options(key, untyped):
    path, nearer, s = pairs_of_paths(key)
    run = partial(moments.inductive_moment_matching, TRUTH, path, nearer)
    with pytest.raises(ValueError, match="divide the batch of 32; got 5"):
        run(s, group=5)
    with pytest.raises(ValueError, match="`group` must be at least 2"):
        moments.grouped_times(key, 8, group=1)
    with pytest.raises(ValueError, match="`s` must have shape"):
        run(s[:, None])
    with pytest.raises(ValueError, match="`sigma_data` must be positive"):
        run(s, sigma_data=0.0)
    with pytest.raises(ValueError, match="0 < `low` < `high` < 1"):
        moments.grouped_times(key, 8, low=0.0)


# Dispersive losses --------------------------------------------------------------------


def distances(h):
    return np.linalg.norm(h[:, None] - h[None], axis=-1)


def plain_cosine(h):
    unit = h / np.linalg.norm(h, axis=1, keepdims=True)
    return np.log(np.mean(np.exp(-(1 - unit @ unit.T) / 0.5)))


def plain_hinge(h):
    d = distances(h)[~np.eye(len(h), dtype=bool)]
    return np.maximum(0, 1 - d).mean()


def plain_covariance(h):
    c = np.cov(h.T)
    off = c[~np.eye(len(c), dtype=bool)]
    return (off**2).mean() + np.maximum(0, 1 - np.diag(c)).mean()


# name: loss, the same written plainly, value at the collapse, invariances
DISPERSIVE = {
    "infonce_l2": (
        features.infonce_l2,
        lambda h: np.log(np.mean(np.exp(-(distances(h) ** 2) / 0.5))),
        0.0,
        {"translation", "rotation"},
    ),
    "infonce_cosine": (
        features.infonce_cosine,
        plain_cosine,
        0.0,
        {"scale", "rotation"},
    ),
    "infonce_relative": (
        features.infonce_relative,
        lambda h: np.log(np.mean(np.exp(-((distances(h) / distances(h).max()) ** 2)))),
        0.0,
        {"scale", "translation", "rotation"},
    ),
    "hinge": (features.hinge, plain_hinge, 1.0, {"translation", "rotation"}),
    "covariance": (features.covariance, plain_covariance, 1.0, {"translation"}),
}


def random_features(key, shape=(12, 2, 3), scale=0.3):
    return scale * jax.random.normal(key, shape) + 0.2


@pytest.mark.parametrize("name", DISPERSIVE)
@pytest.mark.parametrize("shape", [(12, 3), (12, 2, 3), (5, 3, 4)])
def test_dispersive_losses_are_their_formulas(key, name, shape):
    loss, plain, _, _ = DISPERSIVE[name]
    h = random_features(key, shape)
    value = loss(h)
    assert value.shape == ()
    expected = plain(np.asarray(h).reshape(len(h), -1))
    # Two of them round a root or a quotient off, by 1e-12 under it.
    np.testing.assert_allclose(value, expected, rtol=1e-9)


@pytest.mark.parametrize("name", DISPERSIVE)
def test_dispersive_losses_fall_as_features_part(key, name):
    loss, _, collapsed, _ = DISPERSIVE[name]
    h = jax.random.normal(key, (12, 8))
    direction = jnp.ones((1, 8)) / jnp.sqrt(8.0)
    # From one point, or one direction, to the features themselves.
    values = [loss(direction + a * (h - direction)) for a in (0.0, 0.05, 0.3)]
    np.testing.assert_allclose(values[0], collapsed, atol=1e-5)
    assert values[1] < values[0] - 1e-4
    if name != "infonce_relative":  # whose scale is free
        assert values[2] < values[1] - 1e-2
    near = 0.1 * h
    slope = jax.grad(loss)(near)
    moved = near - 0.1 * slope * jnp.linalg.norm(near) / jnp.linalg.norm(slope)
    assert loss(moved) < loss(near) - 1e-3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("value", [0.0, 1.0, 1e3 / 3])
@pytest.mark.parametrize("name", DISPERSIVE)
def test_the_collapse_has_finite_gradients(name, value, dtype):
    loss, _, collapsed, _ = DISPERSIVE[name]
    h = jnp.full((6, 4), value, dtype)
    got, grad = jax.value_and_grad(loss)(h)
    assert got.dtype == dtype
    assert jnp.isfinite(grad).all()
    if name == "infonce_cosine" and value == 0:
        collapsed = (
            -2.0
        )  # rows without a direction are at distance 1, even from themselves
    np.testing.assert_allclose(got, collapsed, atol=1e-5)


@pytest.mark.parametrize("name", DISPERSIVE)
def test_dispersive_losses_are_invariant_as_claimed(key, name):
    loss, _, _, invariances = DISPERSIVE[name]
    h = random_features(key, (12, 4))
    turn = jnp.linalg.qr(jax.random.normal(key, (4, 4)))[0]
    changed = {
        "translation": h + jnp.array([[1.0, -2.0, 3.0, 0.5]]),
        "rotation": h @ turn,
        "scale": 1.7 * h,
    }
    value = loss(h)
    np.testing.assert_allclose(loss(h[::-1]), value, rtol=1e-12)
    for change, moved in changed.items():
        same = jnp.abs(loss(moved) - value) < 1e-8
        assert same == (change in invariances), change
    along = jnp.sum(jax.grad(loss)(h) * h)
    assert (jnp.abs(along) < 1e-8) == ("scale" in invariances)


def test_distances_survive_a_large_mean(key):
    h = jax.random.normal(key, (16, 8), jnp.float32)
    exact = distances(np.asarray(h, np.float64)) ** 2
    got = features.squared_distances(h + 512)
    np.testing.assert_allclose(got, exact, atol=2e-3)
    np.testing.assert_array_equal(jnp.diag(got), 0)


@pytest.mark.parametrize("name", DISPERSIVE)
def test_a_sharded_batch_has_the_value_of_the_whole(key, name):
    loss, *_ = DISPERSIVE[name]
    h = random_features(key, (16, 4))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(h, NamedSharding(mesh, PartitionSpec("data")))
    value, grad = jax.jit(jax.value_and_grad(loss))(spread)
    expected, plain_grad = jax.value_and_grad(loss)(h)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(grad, plain_grad, rtol=1e-9, atol=1e-12)


def test_dispersive_losses_name_bad_options(key, untyped):
    h = random_features(key)
    for loss, _, _, _ in DISPERSIVE.values():
        with pytest.raises(ValueError, match="at least two rows"):
            loss(h[:1])
    for name in ("infonce_l2", "infonce_cosine", "infonce_relative"):
        with pytest.raises(ValueError, match="`temperature` must be positive"):
            DISPERSIVE[name][0](h, temperature=0.0)
    with pytest.raises(ValueError, match="`margin` must be positive"):
        features.hinge(h, margin=-1.0)


def test_a_batch_quantity_adds_to_every_row(key):
    loss = plus(jnp.zeros(12), features.hinge(random_features(key)), weight=0.5)
    assert loss.shape == (12,)


# Adversarial terms --------------------------------------------------------------------


def quadratic(params):
    """``D(x, t) = t (a . x + b |x|^2 / 2)``."""
    a, b = params

    def discriminator(x, t, cond=None, /):
        return t * ((a[None] * x).sum(1) + b * jnp.square(x).sum(1) / 2)

    return discriminator


PARAMS = (jnp.array([0.5, -1.0, 2.0], jnp.float32), jnp.float32(0.7))


@pytest.fixture
def params():
    return jax.tree.map(lambda a: a.astype(jnp.float64), PARAMS)


@pytest.mark.parametrize("relativistic", [False, True])
def test_discriminator_loss_is_least_at_the_log_ratio(relativistic):
    """Real N(m, s^2) against fake N(0, 1), by Gauss-Hermite nodes."""
    n, w = np.polynomial.hermite_e.hermegauss(80)
    w = w / w.sum()
    mean, std = 0.8, 0.7
    real, fake = np.meshgrid(mean + std * n, n, indexing="ij")
    weights = np.outer(w, w).ravel()
    real, fake = (jnp.asarray(a.reshape(-1, 1)) for a in (real, fake))

    def log_ratio(x):
        return (x**2 / 2 - (x - mean) ** 2 / (2 * std**2))[:, 0] - jnp.log(std)

    def expected(theta):
        def discriminator(x, t, cond=None, /):
            bumps = jnp.stack([x[:, 0], jnp.sin(x[:, 0]), jnp.cos(2 * x[:, 0])])
            return log_ratio(x) + theta @ bumps

        loss = adversarial.discriminator_loss(
            discriminator, real, fake, relativistic=relativistic
        )
        return (weights * loss).sum()

    gradient = jax.jit(jax.grad(expected))
    truth = jnp.zeros(3)
    np.testing.assert_allclose(gradient(truth), 0, atol=1e-7)
    hessian = jax.hessian(expected)(truth)
    assert jnp.linalg.eigvalsh(hessian).min() > 1e-3


@pytest.mark.parametrize("relativistic", [False, True])
def test_an_undecided_discriminator(key, relativistic):
    x, y = jax.random.normal(key, (2, 4, 3))

    def undecided(x, t, cond=None, /):
        return jnp.zeros(len(x))

    loss = adversarial.discriminator_loss(undecided, x, y, relativistic=relativistic)
    np.testing.assert_allclose(loss, (1 if relativistic else 2) * np.log(2))
    real = x if relativistic else None
    loss = adversarial.generator_loss(undecided, y, real=real)
    np.testing.assert_allclose(loss, np.log(2))


@pytest.mark.parametrize("relativistic", [False, True])
def test_gradients_of_generator_and_discriminator(key, params, relativistic):
    real, fake = jax.random.normal(key, (2, 4, 3))
    t = jnp.array([0.2, 0.5, 0.8, 1.0])
    d = quadratic(params)
    compared = real if relativistic else None
    pull = jax.grad(
        lambda fake: adversarial.generator_loss(d, fake, real=compared, t=t).sum()
    )(fake)
    margin = d(fake, t) - (d(real, t) if relativistic else 0.0)
    slope = t[:, None] * (params[0][None] + params[1] * fake)
    np.testing.assert_allclose(
        pull, -jax.nn.sigmoid(-margin)[:, None] * slope, rtol=1e-10
    )

    def critic(params, fake):
        return adversarial.discriminator_loss(
            quadratic(params), real, fake, t=t, relativistic=relativistic
        ).sum()

    of_params, of_fake = jax.grad(critic, (0, 1))(params, fake)
    np.testing.assert_array_equal(of_fake, jnp.zeros_like(fake))
    push = jax.nn.sigmoid(margin if relativistic else d(fake, t))
    hold = jax.nn.sigmoid(margin if relativistic else -d(real, t))
    expected = (t * push) @ fake - (t * hold) @ real
    np.testing.assert_allclose(of_params[0], expected, rtol=1e-10)


def test_gradient_penalty_is_the_squared_slope(key, params):
    x = jax.random.normal(key, (4, 3))
    t = jnp.array([0.2, 0.5, 0.8, 1.0])

    def penalty(params):
        return adversarial.gradient_penalty(quadratic(params), x, t=t)

    def expected(params):
        a, b = params
        return jnp.square(t[:, None] * (a[None] + b * x)).sum(1)

    np.testing.assert_allclose(penalty(params), expected(params), rtol=1e-12)
    got, plain = (
        jax.grad(lambda p, f=f: f(p).sum())(params) for f in (penalty, expected)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10), got, plain)
    image = x[:, None, :, None] + jnp.zeros((4, 2, 3, 1))

    def by_pixel(x, t, cond=None, /):
        return jnp.square(x).sum((1, 2, 3)) / 2

    np.testing.assert_allclose(
        adversarial.gradient_penalty(by_pixel, image),
        jnp.square(image).sum((1, 2, 3)),
        rtol=1e-12,
    )


def test_discriminators_get_clean_times_and_the_condition(key):
    x = jax.random.normal(key, (4, 3))
    labels = jnp.arange(4)
    seen = []

    def discriminator(x, t, cond=None, /):
        np.testing.assert_array_equal(t, 1.0)
        assert cond is labels
        seen.append(1)
        return x[:, 0]

    adversarial.generator_loss(discriminator, x, labels, real=x)
    adversarial.discriminator_loss(discriminator, x, x, labels)
    adversarial.gradient_penalty(discriminator, x, labels)
    assert len(seen) == 5


def test_adversarial_terms_name_bad_shapes(key, untyped):
    x = jax.random.normal(key, (4, 3))

    def wide(x, t, cond=None, /):
        return x[:, :1]

    with pytest.raises(ValueError, match=r"must return \[batch\]=\(4,\); got \(4, 1\)"):
        adversarial.generator_loss(wide, x)
    with pytest.raises(ValueError, match="`fake` must have shape"):
        adversarial.discriminator_loss(wide, x, x[:2])
    with pytest.raises(ValueError, match="`real` must have shape"):
        adversarial.generator_loss(lambda x, t, cond=None, /: x[:, 0], x, real=x[:2])
