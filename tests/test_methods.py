"""Every method of the table, through the same laws."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.engine.experiment import TABLES, Training
from experiments.engine.model import Guidance
from experiments.engine.road import make_loss, make_prepare
from experiments.engine.sampling import Jumps, Ode
from experiments.language import grammar
from experiments.language.sentence import REQUIRED, Use, options_of, use
from experiments.methods import METHODS
from experiments.methods.base import Batch, draw_key
from flowjax import guidance, interpolants, objectives
from flowjax.fields import diagonal
from flowjax.objectives import penalties
from flowjax.times import uniform_grid
from flowjax.training import make_step
from flowjax.typing import Pairs
from tests import toy_experiment as toy

NAMES = sorted(METHODS)
SOME_ALWAYS = [
    # Some seconds of tracing each: one of each kind every time, all of them in CI.
    name
    if name in ("mean_flow", "lagrangian_distillation", "reflow", "pi_flow")
    else pytest.param(name, marks=pytest.mark.slow)
    for name in NAMES
]
BATCH = {"index": jnp.arange(16, dtype=jnp.uint32)}


def step_of(experiment, **options):
    """The step of an experiment, its first state and a batch."""
    model, teacher = toy.model_of(experiment)
    params = None if teacher is None else teacher.params
    step = make_step(
        make_loss(model, teacher, params),
        model.optimizer(),
        ema_decay=experiment.ema.build(),
        prepare=make_prepare(model),
        **options,
    )
    batch = BATCH
    if model.method.from_pairs:
        batch = {k: jnp.asarray(v[:16]) for k, v in teacher.pairs(0).items()}
    return step, model, batch


def shapes_of(experiment, **options):
    """Trace a step of an experiment; nothing is computed."""
    step, model, batch = step_of(experiment, **options)
    state = jax.eval_shape(model.init, jax.random.key(0))
    return jax.eval_shape(step, state, batch)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_finite_and_moves_every_module(name):
    step, model, batch = step_of(toy.experiment_of(name))

    @jax.jit
    def two_steps(key):
        state = model.init(key)
        first, _ = step(state, batch)
        second, metrics = step(first, batch)
        return state.params, second.params, metrics

    before, after, metrics = two_steps(jax.random.key(0))
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["grad_norm"] > 0
    for module in before:
        moved = jax.tree.map(
            lambda a, b: float(jnp.abs(a - b).max()), before[module], after[module]
        )
        assert max(jax.tree.leaves(moved)) > 0, module


# What a method reads


CONTEXT = {
    # Targets of their own exist in two phases only.
    "target": {"structure": "two_phases"},
    "target_dtype": {"structure": "two_phases"},
}

NEEDED = {
    penalties.pseudo_huber: {"scale": 0.1},
    penalties.clipped: {"bound": 0.5},
    guidance.guided_velocity: {"omega": 2.0},
}
"""Options without default of what a joint is changed to."""


def other_value(option, value):
    """Another value of an option's kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return 2 * value
    if isinstance(value, float):
        return value / 2 + 0.125
    if isinstance(value, tuple):
        return tuple(entry / 2 + 0.125 for entry in value)
    choices = [c for c in getattr(option.kind, "__args__", ()) if c != value]
    known = [c for c in choices if isinstance(c, str)]
    if known:
        return known[-1]
    if value is None:
        literal = next(c for c in choices if c is not type(None))
        return getattr(literal, "__args__", (0.3,))[-1] if literal is not float else 0.3
    raise AssertionError(option)


def other_thing(node):
    """Something else for a joint."""
    wanted = {
        "penalty": penalties.pseudo_huber,
        "guidance": guidance.guided_velocity,
        "teacher": toy.Known,
    }
    if node.option.name in wanted:
        thing = wanted[node.option.name]
        if isinstance(node.value, Use) and node.value.thing is thing:
            return node.value.vary(guidance=0.5)
        return Use(thing, NEEDED.get(thing, {}))
    now = node.value.thing if isinstance(node.value, Use) else None
    for thing in TABLES[node.option.name].values():
        if thing is now:
            continue
        new = Use(thing)
        if "sampler" in new:
            new = new.vary(sampler=Use(TABLES["times"]["uniform"]))
        if "share_equal" in new:
            new = new.vary(share_equal=0.25)
        if REQUIRED not in [new[option] for option in options_of(thing)]:
            return new
    raise AssertionError(node)


def program(experiment):
    """What a step computes of what, and the shapes of the parameters."""
    step, model, batch = step_of(experiment)
    state = jax.eval_shape(model.init, jax.random.key(0))
    lowered = jax.jit(step).lower(state, batch).as_text()
    shapes = jax.tree.map(lambda leaf: leaf.shape, state.params)
    return lowered, shapes, sum(float(leaf.sum()) for leaf in batch.values())


@cache
def program_of(name, **context):
    return program(toy.experiment_of(name, method=context))


@pytest.mark.parametrize("name", SOME_ALWAYS)
def test_a_method_reads_all_of_its_options(name):
    """Changing one changes the program of a step."""
    method = toy.experiment_of(name).method
    for option, kind in options_of(method.thing).items():
        if kind.kind is None:
            continue
        context = CONTEXT.get(option, {}) if "structure" in method else {}
        changed = {option: other_value(kind, method[option])}
        plain = program_of(name, **context)
        other = program(toy.experiment_of(name, method=context | changed))
        assert plain != other, option
    for node in grammar.nodes(method):
        if len(node.place) == 1:
            changed = {node.option.name: other_thing(node)}
            assert program_of(name) != program(
                toy.experiment_of(name, method=changed)
            ), node.flag


# Where the truth is


def batch_at_the_truth(method, theta, truth, *, steps=4):
    """A batch whose field is off an exact one by theta times some function."""
    exact_u, exact_v = truth
    key_noise, key_data, key = jax.random.split(jax.random.key(7), 3)
    x0 = jax.random.normal(key_noise, (64, 1))
    x1 = toy.MEAN + toy.STD * jax.random.normal(key_data, (64, 1))
    if method.from_pairs:
        x1 = toy.MEAN + toy.STD * x0

    def u(x, t, s, cond=None):
        bump = jnp.cos(x + t[:, None] - 2 * s[:, None]) + 0.3 * s[:, None]
        return exact_u(x, t, s) + theta * bump

    def aim(path):
        return path._replace(v=exact_v(path.x, path.t))

    def functions(field):
        return toy.exact_functions(field, diagonal(field))

    def still(field):
        return lambda x, t, s, cond=None: jax.lax.stop_gradient(field(x, t, s))

    return Batch(
        key=key,
        pairs=Pairs(x0, x1, None),
        path=interpolants.linear(),
        now=functions(u),
        target=functions(still(u)),
        still=functions(still(u)),
        aim=aim,
        teacher=exact_v,
        step=jnp.asarray(steps),
        steps=steps,
    )


@pytest.mark.parametrize("name", [n for n in NAMES if METHODS[n].exact])
def test_a_method_is_stationary_at_the_exact_field(name):
    """Where it claims to be; and it is not somewhere else."""
    method = toy.experiment_of(name).method.build()
    truth = toy.average_velocity, toy.velocity
    if method.from_pairs:
        truth = (lambda x, t, s: toy.straight_velocity(x, t)), toy.straight_velocity

    @jax.jit
    @jax.grad
    def slope(theta):
        return method.loss(batch_at_the_truth(method, theta, truth))[0].mean()

    with jax.enable_x64(True):
        # FACM's cosine has 1e-12 below its root.
        assert abs(slope(jnp.float64(0.0))) < 1e-8
        assert abs(slope(jnp.float64(0.3))) > 1e-3


def test_most_methods_claim_to_be_stationary():
    assert sum(METHODS[name].exact for name in NAMES) >= 15


# What cuts across


def works_or_says(*words):
    """Accept a ValueError that names what does not go together."""

    class Check:
        def __enter__(self):
            return self

        def __exit__(self, kind, error, traceback):
            if kind is None:
                return True
            if not issubclass(kind, ValueError):
                return False
            assert any(word in str(error) for word in words), str(error)
            return True

    return Check()


CROSSING = {
    "guidance as an input": {"network": {"guidance": True}},
    "bfloat16": {"network": {"dtype": "bfloat16"}},
    "a second head": {"network": {"velocity_head": 1}},
    "no labels dropped": {"data": {"condition_dropout": 0.0}},
    "a curved path": {"path": use(interpolants.polynomial, power=2.0)},
}


@pytest.mark.parametrize("name", SOME_ALWAYS)
def test_what_cuts_across_works_with_every_method_or_is_refused(name):
    for about, parts in CROSSING.items():
        with works_or_says("trigonometric", "guidance"):
            state, _ = shapes_of(toy.experiment_of(name, **parts))
            assert "field" in state.params, about
    half = toy.experiment_of(name)
    shapes_of(half, accumulate=2)
    if "guidance" in half.method:
        guided = use(guidance.guided_velocity, omega=2.0, kappa=0.2)
        shapes_of(toy.experiment_of(name, method={"guidance": guided}))
        with works_or_says("every scale"):
            told = {"method": {"guidance": guided}, "network": {"guidance": True}}
            shapes_of(toy.experiment_of(name, **told))
            raise AssertionError("a told network is guided twice")
    if "teacher" in half.method:
        louder = {"teacher": use(toy.Known, guidance=2.0)}
        shapes_of(toy.experiment_of(name, method=louder))


def sampled(model, sampler, scale):
    """Trace a sampler under guidance; return the shape and the evaluations."""
    params = jax.eval_shape(model.init, jax.random.key(0)).params
    x0, labels, counts = jnp.zeros((4, 1)), jnp.zeros(4, jnp.int32), []

    def sample(params):
        field = model.field(params, Guidance(scale))
        x, count = sampler(field, jax.random.key(0), x0, labels)
        counts.append(count)
        return x

    return jax.eval_shape(sample, params).shape, counts[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_method_is_sampled_with_guidance_or_without(name):
    jumps = Jumps(grid=use(uniform_grid, steps=2))
    for told in (False, True):
        model, _ = toy.model_of(toy.experiment_of(name, network={"guidance": told}))
        (shape, plain), (_, guided) = (sampled(model, jumps, c) for c in (1.0, 2.0))
        assert shape == (4, 1)
        assert guided == plain * (1 if told else 2)
        if model.method.velocity:
            assert sampled(model, Ode(tolerance=1e-2), 2.0)[0] == (4, 1)
        else:
            with pytest.raises(ValueError, match="leaves no velocity"):
                sampled(model, Ode(), 2.0)


def test_guidance_of_a_run_that_never_dropped_a_label_is_refused():
    model, _ = toy.model_of(
        toy.experiment_of("mean_flow", data={"condition_dropout": 0.0})
    )
    with pytest.raises(ValueError, match="condition_dropout is 0"):
        model.field({}, Guidance(2.0))


# The table is complete


HELPERS = {"pushed", "constant_acceleration_field"}
"""Public beside the losses: states that a loss looks at, and what is sampled."""


def test_every_objective_is_reached_by_a_method(monkeypatch):
    """Each public loss of the library stands behind a method of the table."""
    reached = set()
    for name in objectives.__all__:
        function = getattr(objectives, name)
        if not callable(function) or name in HELPERS:
            continue

        def noted(*args, name=name, function=function, **kwargs):
            reached.add(name)
            return function(*args, **kwargs)

        monkeypatch.setattr(objectives, name, noted)
    for name in NAMES:
        experiment = toy.experiment_of(name)
        if "weight" in experiment.method:  # some second terms are off by default
            experiment = experiment.vary(method={"weight": 0.5})
        shapes_of(experiment)
    losses = {n for n in objectives.__all__ if callable(getattr(objectives, n))}
    assert losses - HELPERS == reached


def test_pairs_of_a_host_coupling_do_not_depend_on_who_makes_them(monkeypatch):
    """Two processes make the halves of what one makes; it resumes where it was."""
    from experiments.engine.road import HostPairs, on_host, open_batches

    def sorted_pairs(rng: np.random.Generator, x0, x1, cond=None, /):
        """Pair the smallest with the smallest."""
        order = np.argsort(x1[:, 0])
        rows = np.sort(x0, axis=0)
        return Pairs(rows, x1[order], cond[order])

    experiment = toy.experiment_of("flow_matching", coupling=use(sorted_pairs))
    assert on_host(experiment.coupling)
    model, _ = toy.model_of(experiment)
    data = experiment.data.build()
    whole = open_batches(model, data, None)
    assert isinstance(whole, HostPairs)
    one = [next(whole) for _ in range(3)]
    assert (np.diff(one[2]["x0"][:, 0]) >= 0).all()
    assert (np.diff(one[2]["x1"][:, 0]) >= 0).all()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    halves = []
    for index in range(2):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        half = open_batches(model, data, None)
        next(half)
        state = half.get_state()
        next(half)
        half.set_state(state)
        next(half)
        halves.append(next(half))
    for name, rows in one[2].items():
        joined = np.concatenate([half[name] for half in halves])
        np.testing.assert_array_equal(joined, rows)


def test_a_coupling_on_the_device_sees_the_whole_batch():
    """Also where a batch is worked off in parts: pairs cross their borders."""

    keys = []

    def reversed_pairs(key, x0, x1, cond=None, /):
        """Pair the first with the last."""
        keys.append(key)
        return Pairs(x0[::-1], x1, cond)

    plain, other = (
        toy.experiment_of("flow_matching", **parts)
        for parts in ({}, {"coupling": use(reversed_pairs)})
    )
    key = jax.random.key(3)
    a, b = (make_prepare(toy.model_of(e)[0])(key, BATCH) for e in (plain, other))
    np.testing.assert_array_equal(a.x0[::-1], b.x0)
    np.testing.assert_array_equal(a.x1, b.x1)
    np.testing.assert_array_equal(a.cond, b.cond)
    # Its key is not that of the times, which come next.
    own = jax.random.split(key, 4)[3]
    assert keys[0] == draw_key(own, "coupling") != draw_key(own, "times")
    step, model, batch = step_of(other, accumulate=2)
    state, _ = jax.jit(step)(model.init(key), batch)
    assert state.step == 1


def test_training_options_are_checked():
    with pytest.raises(ValueError, match=r"training\.steps must be positive; got -1"):
        use(Training, steps=-1).build()
    with pytest.raises(ValueError, match=r"multiple of training\.log_every=50"):
        use(Training, checkpoint_every=75).build()
    with pytest.raises(ValueError, match="shard_state needs"):
        use(Training, shard_state=True, parallel="pmap").build()
