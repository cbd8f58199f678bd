"""Contracts: what `checked` reads from annotations, and which field is which.

The sweep over all public functions is in `test_bad_input`.
"""

import functools
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import fields, guidance, interpolants, objectives, sampling, times
from flowjax.contracts import called_like, checked
from flowjax.contracts.arity import arity
from flowjax.typing import (
    AverageVelocityField,
    Condition,
    Count,
    PRNGKey,
    State,
    Time,
    VelocityField,
)

X, T = jnp.full((4, 2), 0.5), jnp.full(4, 0.5)
LABELS = jnp.zeros(4, jnp.int32)


@checked
def subject(
    x: State,
    t: Time,
    cond: Condition = None,
    *,
    key: PRNGKey | None = None,
    steps: Count = 1,
) -> State:
    """Say what it is."""
    return x * t[:, None]


def test_signature_and_docstring_stay():
    assert list(inspect.signature(subject).parameters) == [
        *("x", "t", "cond", "key", "steps")
    ]
    assert subject.__doc__ == "Say what it is."
    assert subject.__name__ == "subject"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, T), r"`x` must be an array of shape \[batch, \*event\]; got None"),
        ((X[0, 0], T), r"`x` must have shape \[batch, \*event\]; got \(\)"),
        ((X[:, 0], T), r"`x` must have shape \[batch, \*event\]; got \(4,\)"),
        ((X.astype(int), T), "`x` must have a floating dtype; got int32"),
        ((X[:0], T[:0]), r"`x` must not be empty; got shape \(0, 2\)"),
        ((X, 0.5), r"`t` must be an array of shape \[batch\]; got 0.5"),
        ((X, T[:3]), r"`t` must have shape \[batch\]=\(4,\); got \(3,\).* of `x`"),
        ((X, T + 1), r"`t` must lie in \[0, 1\] .*; got values from 1.5 to 1.5"),
        ((X * jnp.nan, T), "`x` must be finite; got 8 of 8 values NaN or inf"),
        ((X, T, {"a": LABELS[:2]}), r"`cond\['a'\]` must have the leading axis batch"),
    ],
)
def test_what_is_wrong_is_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        subject(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": jax.random.PRNGKey(0)}, "`key` must have a typed key's dtype"),
        ({"key": 0}, "`key` must be a typed key, .* or None; got 0"),
        ({"steps": 0}, "`steps` must be at least 1; got 0"),
        ({"steps": 1.5}, "`steps` must be an integer; got 1.5"),
        ({"steps": True}, "`steps` must be an integer; got True"),
        ({"steps": None}, "`steps` must be an integer; got None"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        subject(X, T, **options)


def test_numpy_arrays_are_taken_for_those_of_jax():
    expected = subject(X, T)
    got = subject(np.asarray(X, np.float64), np.asarray(T, np.float64))
    assert isinstance(got, jax.Array)
    np.testing.assert_array_equal(got, expected)

    # Where a NumPy array was passed over in silence.
    path = interpolants.sample_path(interpolants.linear(), X, X + 1, T)

    def u(x, t, s, cond=None):
        return jnp.sin(3 * x) * (1 + s[:, None])

    tangent = np.full((4, 2), 7.0, np.float32)
    losses = [
        objectives.mean_flow(u, path, jnp.ones(4), tangent=w)
        for w in (None, tangent, jnp.asarray(tangent))
    ]
    assert (losses[0] != losses[1]).all()
    np.testing.assert_array_equal(losses[1], losses[2])


def test_values_are_looked_at_only_where_they_are_known():
    jax.jit(subject)(X * jnp.nan, T + 1)
    jax.vmap(subject)(X[None], T[None])
    jax.grad(lambda x: subject(x, T).sum())(X)
    jax.jvp(lambda t: subject(X, t), (T,), (T,))
    with pytest.raises(ValueError, match=r"`t` must have shape \[batch\]=\(4,\)"):
        jax.jit(subject)(X, T[:3])


def test_a_compiled_program_holds_no_check():
    def plain(x, t):
        return x * t[:, None]

    checked_text, plain_text = (
        jax.jit(f).lower(X, T).as_text() for f in (subject, plain)
    )
    assert checked_text.replace("subject", "plain") == plain_text


# Which fields are which ------------------------------------------------------------


class Velocity(nn.Module):
    """As a user writes it in Flax Linen."""

    @nn.compact
    def __call__(self, x, t, cond=None):
        return nn.Dense(x.shape[-1])(x)


class Average(nn.Module):
    """The same with a destination time."""

    @nn.compact
    def __call__(self, x, t, s, cond=None):
        return nn.Dense(x.shape[-1])(x)


class BoundVelocity:
    """What NNX and Equinox modules are: objects with parameters and a call."""

    def __init__(self):
        self.scale = jnp.ones(())

    def __call__(self, x, t, cond=None, *, key=None):
        return -self.scale * x


class BoundAverage(BoundVelocity):
    def __call__(self, x, t, s, cond=None, *, key=None):
        return -self.scale * x


def velocity(x, t, cond=None):
    return -x


def average(x, t, s, cond=None):
    return -x


def with_parameters(params, x, t, s, cond=None):
    return params * x


def linen(module, *args):
    params = module.init(jax.random.key(0), *args)
    return functools.partial(module.apply, params)


def nowhere(x, t, *rest):
    return -x


VELOCITIES = {
    "function": lambda: velocity,
    "without default": lambda: lambda x, t, cond: -x,
    "with an option": lambda: lambda x, t, cond=None, train=False: -x,
    "linen": lambda: linen(Velocity(), X, T),
    "jitted linen": lambda: jax.jit(linen(Velocity(), X, T)),
    "bound linen": lambda: Velocity().bind(Velocity().init(jax.random.key(0), X, T)),
    "object": BoundVelocity,
    "diagonal": lambda: fields.diagonal(average),
    "guided": lambda: guidance.classifier_free(velocity, scale=2.0, null=3),
    "held": lambda: guidance.zero_start(velocity),
}
AVERAGES = {
    "function": lambda: average,
    "without default": lambda: lambda x, t, s, cond: -x,
    "partial": lambda: functools.partial(with_parameters, jnp.ones(())),
    "jitted": lambda: jax.jit(average),
    "linen": lambda: linen(Average(), X, T, T),
    "jitted linen": lambda: jax.jit(linen(Average(), X, T, T)),
    "bound linen": lambda: Average().bind(Average().init(jax.random.key(0), X, T, T)),
    "object": BoundAverage,
    "method": lambda: BoundAverage().__call__,
    "euler step": lambda: fields.euler_step(velocity),
    "guided": lambda: guidance.classifier_free(average, scale=2.0, null=3),
    "autoguided": lambda: guidance.autoguidance(average, average, scale=2.0),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_an_average_velocity_is_no_velocity(name):
    u = AVERAGES[name]()
    for call in (
        lambda: sampling.ode(u, X, cond=LABELS, steps=[0.0, 1.0]),
        lambda: fields.divergence(u, X, T),
        lambda: guidance.zero_start(u),
    ):
        with pytest.raises(ValueError, match=r"give `fields.diagonal\(u\)`"):
            call()
    sampling.few_step(u, X, cond=LABELS)
    sampling.ode(fields.diagonal(u), X, cond=LABELS, steps=[0.0, 1.0])


@pytest.mark.parametrize("name", VELOCITIES)
def test_a_velocity_is_no_average_velocity(name):
    v = VELOCITIES[name]()
    sampling.ode(v, X, cond=LABELS, steps=[0.0, 1.0])
    if name == "with an option":  # as many arguments as an average velocity
        return
    with pytest.raises(ValueError, match=r"`u` must be .* `fields.euler_step\(v\)`"):
        sampling.few_step(v, X, cond=LABELS)


@pytest.mark.parametrize("call", [nowhere, print])
def test_what_cannot_be_told_is_let_through(call):
    assert arity(call) is None
    sampling.few_step(nowhere, X)
    sampling.ode(nowhere, X, steps=[0.0, 1.0])


def test_arity_counts_what_can_still_be_given():
    assert arity(lambda a, b, /, c=1, *, d: 0)[:2] == (2, 3)
    assert arity(functools.partial(lambda a, b, c: 0, 1))[:2] == (2, 2)
    assert arity(functools.partial(lambda a, b, c=1: 0, b=1))[:2] == (1, 1)
    assert arity(called_like(velocity)(nowhere))[:2] == (2, 3)
    assert arity(Average().apply)[:2] == (4, 5)
    assert arity(lambda x, t, s: 0).names == ("x", "t", "s")
    del nowhere.__wrapped__


@pytest.mark.parametrize("kind", [VelocityField, AverageVelocityField])
def test_a_field_must_return_the_shape_of_its_input(kind):
    @checked
    def asked(field: kind) -> State:
        times = (T,) if kind is VelocityField else (T, T)
        return field(X, *times, None)

    np.testing.assert_array_equal(asked(lambda x, *_: 2 * x), 2 * X)
    for bad, message in (
        (lambda x, *_: x[:, 0], r"`field` must return shape .*=\(4, 2\); got \(4,\)"),
        (lambda x, *_: (x, x), r"must return an array of shape \(4, 2\); got a tuple"),
        (lambda x, *_: x.astype(int), "must return a floating dtype; got int32"),
        (lambda x, *_: None, r"must return an array of shape \(4, 2\); got None"),
    ):
        with pytest.raises(ValueError, match=message):
            asked(bad)


def test_a_third_argument_called_s_is_no_condition():
    x = jnp.ones((4, 2))
    with pytest.raises(ValueError, match=r"third argument is s.*fields\.diagonal\(u\)"):
        sampling.ode(lambda x, t, s: -x, x, cond=jnp.ones(4))
    with pytest.raises(ValueError, match="without a condition it takes `cond`"):
        sampling.few_step(lambda x, t, s: -x, x)


def test_numbers_may_be_arrays_without_axes(untyped):
    key = jax.random.key(0)
    expected = times.logit_normal(key, 4, mean=0.5)
    for mean in (np.float32(0.5), np.array(0.5), jnp.array(0.5)):
        np.testing.assert_array_equal(times.logit_normal(key, 4, mean=mean), expected)
    traced = jax.jit(lambda mean: times.logit_normal(key, 4, mean=mean))(0.5)
    np.testing.assert_allclose(traced, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="`share_equal` must be known before tracing"):
        jax.jit(lambda s: times.logit_normal_pairs(key, 4, share_equal=s))(0.5)
    with pytest.raises(ValueError, match="`std` must be positive; got -1"):
        times.logit_normal(key, 4, std=jnp.array(-1.0))
