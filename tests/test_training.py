"""The pure step, its average and its state, against what one writes down by hand."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flowjax.training import TrainState, batch_size, ema, init_state, make_step

pytestmark = pytest.mark.usefixtures("x64")


def lenient(optimizer):
    """Let optax, whose Adam raises a float to an integer power, promote dtypes."""

    def update(*args):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(*args)

    return optax.GradientTransformation(optimizer.init, update)


OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "adamw": lambda: lenient(optax.adamw(optax.cosine_decay_schedule(0.1, 10))),
    "clipped": lambda: lenient(
        optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.1))
    ),
}


def squared_error(params, key, batch, state=None):
    """One layer of regression; draws nothing."""
    del key
    predicted = jnp.tanh(batch["x"] @ params["w"]) + params["b"][None]
    error = predicted - batch["y"]
    metrics = {"error": jnp.abs(error), "rows": jnp.asarray(len(error))}
    return jnp.sum(error**2, axis=1), metrics


def parameters(key, dtype=jnp.float64):
    return {"w": jax.random.normal(key, (5, 3), dtype), "b": jnp.zeros(3, dtype)}


def data(key, rows=16, dtype=jnp.float64):
    key_x, key_y = jax.random.split(key)
    return {
        "x": jax.random.normal(key_x, (rows, 5), dtype),
        "y": jax.random.normal(key_y, (rows, 3), dtype),
    }


def make(loss=squared_error, optimizer=None, decay=None, **options):
    return make_step(
        loss,
        optax.sgd(0.1) if optimizer is None else optimizer,
        ema_decay=ema.constant_decay(0.9) if decay is None else decay,
        **options,
    )


def full_loss(params, batch):
    return jnp.mean(squared_error(params, None, batch)[0])


# The average.


def test_average_of_a_line_has_its_closed_form(key):
    """With params_n = n, n=1..N and ema_0 = 0: ema_N = N - d (1 - d^N) / (1 - d)."""
    del key
    d, n = 0.9, 30
    average = ema.init({"a": jnp.zeros(2)})
    for i in range(1, n + 1):
        params = {"a": jnp.full(2, float(i))}
        average = ema.update(average, params, jnp.asarray(d))
    expected = n - d * (1 - d**n) / (1 - d)
    np.testing.assert_allclose(average["a"], expected, rtol=1e-13)


@pytest.mark.parametrize("steps", [0.5, 1.0, 20.0, 5000.0])
def test_half_life_halves_the_weight_of_the_past(steps):
    decay = ema.half_life(steps)(jnp.int32(7))
    # Relative to the float32 resolution of a number close to 1, over `steps` factors.
    tolerance = max(steps, 1) * np.finfo(np.float32).eps
    np.testing.assert_allclose(np.float64(decay) ** steps, 0.5, rtol=tolerance)


@pytest.mark.parametrize(
    ("step", "life"), [(1, 0.05), (100, 5.0), (1999, 99.95), (2000, 100.0), (9**6, 100)]
)
def test_ramp_up_bounds_the_half_life_by_a_fraction_of_the_elapsed_steps(step, life):
    decay = ema.half_life(100, ramp_up=0.05)(jnp.int32(step))
    np.testing.assert_allclose(decay, 0.5 ** (1 / life), rtol=2e-5, atol=1e-7)


def test_ramp_up_starts_at_the_parameters(key):
    """d(0) is exactly zero: the initial parameters are forgotten at the first step."""
    step = make(decay=ema.half_life(1000, ramp_up=0.05))
    state, _ = step(init_state(key, parameters(key), optax.sgd(0.1)), data(key))
    chex.assert_trees_all_equal(state.ema_params, state.params)


def test_average_starts_at_the_parameters_in_memory_of_its_own(key):
    params = parameters(key)
    average = ema.init(params)
    chex.assert_trees_all_equal(average, params)
    jax.tree.map(lambda x: x.delete(), average)
    assert not params["w"].is_deleted()


def test_average_of_low_precision_parameters_is_kept_in_float32():
    """An increment of 1e-3 is lost at 1 in bfloat16, whose spacing is 8e-3 there."""
    params = {"w": jnp.ones(2, jnp.bfloat16), "table": jnp.arange(3)}
    average = ema.init(params)
    assert average["w"].dtype == jnp.float32
    assert average["table"].dtype == params["table"].dtype
    moved = {"w": jnp.full(2, 2.0, jnp.bfloat16), "table": jnp.arange(3) + 1}
    average = ema.update(average, moved, 0.999)
    np.testing.assert_allclose(average["w"], 1.001, rtol=1e-6)
    np.testing.assert_array_equal(average["table"], moved["table"])


@pytest.mark.parametrize(("decay", "which"), [(0.0, "params"), (1.0, "ema")])
def test_average_is_exact_at_both_ends(key, decay, which):
    trees = {"ema": parameters(key), "params": jax.tree.map(jnp.exp, parameters(key))}
    result = ema.update(trees["ema"], trees["params"], jnp.asarray(decay))
    chex.assert_trees_all_equal(result, trees[which])


# The step.


def test_step_is_gradient_descent_on_the_mean_loss(key):
    params, batch = parameters(key), data(key)
    state, metrics = make()(init_state(key, params, optax.sgd(0.1)), batch)
    loss, grad = jax.value_and_grad(full_loss)(params, batch)
    descended = jax.tree.map(lambda p, g: p - 0.1 * g, params, grad)
    averaged = jax.tree.map(lambda p, q: 0.9 * p + 0.1 * q, params, descended)
    chex.assert_trees_all_close(state.params, descended, rtol=1e-13)
    # 0.9 is a float32 number in the schedule.
    chex.assert_trees_all_close(state.ema_params, averaged, rtol=1e-6)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grad)))
    error = squared_error(params, None, batch)[1]["error"]
    expected = {"loss": loss, "grad_norm": norm, "error": jnp.mean(error), "rows": 16.0}
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert metrics[name].shape == ()
        np.testing.assert_allclose(metrics[name], value, rtol=1e-13)
    assert state.step == 1
    chex.assert_trees_all_equal(state.key, key)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("parts", [2, 16])
def test_accumulated_gradient_is_that_of_the_full_batch(key, name, parts):
    optimizer = OPTIMIZERS[name]()
    state = init_state(key, parameters(key), optimizer)
    batch = data(key)
    whole = jax.jit(make(optimizer=optimizer))
    split = jax.jit(make(optimizer=optimizer, accumulate=parts))
    state_whole, state_split = state, state
    for _ in range(3):
        state_whole, metrics_whole = whole(state_whole, batch)
        state_split, metrics_split = split(state_split, batch)
    rows = metrics_whole.pop("rows"), metrics_split.pop("rows")
    assert rows == (16, 16 // parts)
    chex.assert_trees_all_close(metrics_split, metrics_whole, rtol=1e-11)
    differ = partial(chex.assert_trees_all_close, rtol=1e-9, atol=1e-12)
    differ(state_split.params, state_whole.params)
    differ(state_split.ema_params, state_whole.ema_params)


def noise_metric(params, key, batch, state=None):
    loss, _ = squared_error(params, key, batch)
    return loss, {"noise": jax.random.normal(key, loss.shape)}


def test_each_step_draws_from_the_key_folded_with_its_number(key):
    step = make(noise_metric)
    state = init_state(key, parameters(key), optax.sgd(0.1))
    for n in range(3):
        state, metrics = step(state, data(key))
        expected = jax.random.normal(jax.random.fold_in(key, n), (16,)).mean()
        np.testing.assert_allclose(metrics["noise"], expected, rtol=1e-12)


def test_each_part_draws_its_own_noise(key):
    state = init_state(key, parameters(key), optax.sgd(0.1))
    _, metrics = make(noise_metric, accumulate=4)(state, data(key))
    step_key = jax.random.fold_in(key, 0)
    draws = [jax.random.normal(jax.random.fold_in(step_key, i), (4,)) for i in range(4)]
    np.testing.assert_allclose(metrics["noise"], np.mean(draws), rtol=1e-12)


def test_steps_inside_a_scan_are_the_steps_of_a_loop(key):
    """The state is a plain pytree: many steps are one scan."""
    optimizer = OPTIMIZERS["adamw"]()
    state = init_state(key, parameters(key), optimizer)
    step, batch = make(optimizer=optimizer), data(key)
    run = jax.jit(lambda s, b: jax.lax.scan(lambda s, _: step(s, b), s, length=4))
    scanned, metrics = run(state, batch)
    assert isinstance(scanned, TrainState)
    assert scanned.step == 4
    assert metrics["loss"][-1] < metrics["loss"][0]
    compiled = jax.jit(step)
    for _ in range(4):
        state, _ = compiled(state, batch)
    chex.assert_trees_all_close(scanned.params, state.params, rtol=1e-11)


@pytest.mark.parametrize("parts", [1, 4])
def test_dtypes_of_the_state_survive_low_precision(key, parts):
    optimizer = optax.sgd(0.1, momentum=0.9)
    state = init_state(key, parameters(key, jnp.bfloat16), optimizer)
    step = make(optimizer=optimizer, accumulate=parts)
    after, metrics = step(state, data(key, dtype=jnp.bfloat16))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert after.params["w"].dtype == jnp.bfloat16
    assert after.ema_params["w"].dtype == jnp.float32
    assert metrics["loss"].dtype == jnp.float32


def test_sums_over_parts_are_taken_in_float32(key):
    """A sum of ones in bfloat16 would stop growing at 256, of the 1024 here."""
    rows = 1024
    batch = jnp.ones((rows, 1), jnp.bfloat16)
    params = {"w": jnp.zeros((1,), jnp.bfloat16)}

    def loss(params, key, batch, state=None):
        return batch @ params["w"], {}

    state = init_state(key, params, optax.sgd(1.0))
    state, metrics = make(loss, optax.sgd(1.0), accumulate=rows)(state, batch)
    np.testing.assert_allclose(state.params["w"].astype(np.float32), -1.0)
    np.testing.assert_allclose(metrics["grad_norm"].astype(np.float32), 1.0)


@pytest.mark.parametrize("parts", [1, 4])
def test_step_is_traced_once(key, parts):
    state = init_state(key, parameters(key), optax.sgd(0.1))
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(make(accumulate=parts), n=1))
    for i in range(3):
        state, _ = step(state, data(jax.random.fold_in(key, i)))


def test_state_owns_its_buffers(key):
    """Donating the state takes away neither the caller's key nor its parameters."""
    params = parameters(key)
    state = init_state(key, params, optax.sgd(0.1))
    jax.jit(make(), donate_argnums=0)(state, data(key))
    assert state.ema_params["w"].is_deleted()
    assert not key.is_deleted()


# Errors.


def wrong_loss(change):
    def loss(params, key, batch, state=None):
        losses, metrics = squared_error(params, key, batch)
        return change(losses, metrics)

    return loss


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, m: (x.mean(), m), r"\[batch\]=\(16,\); got \(\)"),
        (lambda x, m: (x[:, None], m), r"\[batch\]=\(16,\); got \(16, 1\)"),
        (lambda x, m: (x, {"loss": x}), r"itself reports the metrics \['loss'\]"),
        (lambda x, m: (x, {"a": jnp.ones(3)}), r"metric `a` .* batch=16; .*\(3,\)"),
    ],
)
def test_wrong_returns_of_the_loss(key, change, message):
    state = init_state(key, parameters(key), optax.sgd(0.1))
    with pytest.raises(ValueError, match=message):
        make(wrong_loss(change))(state, data(key))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ema.constant_decay(1.0), r"`decay` must lie in \[0, 1\); got 1.0"),
        (lambda: ema.constant_decay(-0.1), r"got -0.1"),
        (lambda: ema.half_life(0.0), r"`steps` must be positive; got 0.0"),
        (lambda: ema.half_life(1.0, ramp_up=0.0), r"`ramp_up` must be positive"),
        (lambda: make(accumulate=0), r"`accumulate` must be at least 1; got 0"),
        (lambda: batch_size({}), r"got no array"),
        (
            lambda: batch_size({"a": jnp.ones(3), "b": jnp.ones((4, 2))}),
            r"batch\['b'\]",
        ),
        (lambda: batch_size({"a": jnp.ones(3), "b": jnp.ones(())}), r"\(\)"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_batch_that_the_parts_do_not_divide(key):
    state = init_state(key, parameters(key), optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"divisible by accumulate=3; got 16 rows"):
        make(accumulate=3)(state, data(key))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda key: jax.random.key_data(key),
            "`key` must have a typed key's dtype, .*; got uint32",
        ),
        (lambda key: jax.random.split(key), r"`key` must have shape \[\]; got \(2,\)"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_wrong_keys(key, wrong, message):
    with pytest.raises(ValueError, match=message):
        init_state(wrong(key), parameters(key), optax.sgd(0.1))


def test_the_loss_sees_the_state_without_a_gradient_through_it(key):
    """Schedules read the step, targets the averaged parameters."""

    def loss(params, key, batch, state):
        losses, _ = squared_error(params, key, batch)
        anchor = sum(jnp.sum(p) for p in jax.tree.leaves(state.params))
        return losses + anchor, {"step": state.step.astype(jnp.float32)}

    batch = data(key)
    with_anchor, plain = make(loss), make()
    state = with_anchor_state = init_state(key, parameters(key), optax.sgd(0.1))
    for expected in range(2):
        with_anchor_state, metrics = with_anchor(with_anchor_state, batch)
        state, _ = plain(state, batch)
        assert metrics["step"] == expected
    jax.tree.map(np.testing.assert_array_equal, with_anchor_state.params, state.params)
