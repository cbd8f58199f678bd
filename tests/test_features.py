"""Dispersive losses: features that spread, against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flowjax.objectives import features
from flowjax.objectives.penalties import plus

pytestmark = pytest.mark.usefixtures("x64")


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


# Compiled once for all tests: one by one their operations would be as many programs.
LOSSES = {name: jax.jit(loss) for name, (loss, *_) in DISPERSIVE.items()}
SLOPES = {name: jax.jit(jax.grad(loss)) for name, (loss, *_) in DISPERSIVE.items()}


def random_features(key, shape=(12, 2, 3), scale=0.3):
    return scale * jax.random.normal(key, shape) + 0.2


@pytest.mark.parametrize("name", DISPERSIVE)
@pytest.mark.parametrize("shape", [(12, 3), (12, 2, 3), (5, 3, 4)])
def test_dispersive_losses_are_their_formulas(key, name, shape):
    loss, plain = LOSSES[name], DISPERSIVE[name][1]
    h = random_features(key, shape)
    value = loss(h)
    assert value.shape == ()
    expected = plain(np.asarray(h).reshape(len(h), -1))
    # Two of them round a root or a quotient off, by 1e-12 under it.
    np.testing.assert_allclose(value, expected, rtol=1e-9)


@pytest.mark.parametrize("name", DISPERSIVE)
def test_dispersive_losses_fall_as_features_part(key, name):
    loss, collapsed = LOSSES[name], DISPERSIVE[name][2]
    h = jax.random.normal(key, (12, 8))
    direction = jnp.ones((1, 8)) / jnp.sqrt(8.0)
    # From one point, or one direction, to the features themselves.
    values = [loss(direction + a * (h - direction)) for a in (0.0, 0.05, 0.3)]
    np.testing.assert_allclose(values[0], collapsed, atol=1e-5)
    assert values[1] < values[0] - 1e-4
    if name != "infonce_relative":  # whose scale is free
        assert values[2] < values[1] - 1e-2
    near = 0.1 * h
    slope = SLOPES[name](near)
    moved = near - 0.1 * slope * jnp.linalg.norm(near) / jnp.linalg.norm(slope)
    assert loss(moved) < loss(near) - 1e-3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("value", [0.0, 1.0, 1e3 / 3])
@pytest.mark.parametrize("name", DISPERSIVE)
def test_the_collapse_has_finite_gradients(name, value, dtype):
    collapsed = DISPERSIVE[name][2]
    h = jnp.full((6, 4), value, dtype)
    got, grad = LOSSES[name](h), SLOPES[name](h)
    assert got.dtype == dtype
    assert jnp.isfinite(grad).all()
    if name == "infonce_cosine" and value == 0:
        collapsed = (
            -2.0
        )  # rows without a direction are at distance 1, even from themselves
    np.testing.assert_allclose(got, collapsed, atol=1e-5)


@pytest.mark.parametrize("name", DISPERSIVE)
def test_dispersive_losses_are_invariant_as_claimed(key, name):
    loss, invariances = LOSSES[name], DISPERSIVE[name][3]
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
    along = jnp.sum(SLOPES[name](h) * h)
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
    expected, plain_grad = loss(h), SLOPES[name](h)
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
