"""What a run that goes on may change, and what it does about a state that diverged."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from experiments.engine import loop, record, run
from experiments.engine.experiment import TABLES, Evaluation, Training
from experiments.engine.extension import takes_the_same_steps
from experiments.engine.optimizers import adamw
from experiments.engine.preview import draw_preview
from experiments.engine.road import open_batches
from experiments.language.sentence import options_of, use
from flowjax.training import Checkpointer
from tests.toy_experiment import Line, experiment_of, model_of, sgd

OPTIONS = {"steps": 4, "log_every": 1, "checkpoint_every": 2}


@pytest.fixture(autouse=True)
def _names(monkeypatch):
    """What the experiments here are stored by."""
    monkeypatch.setitem(TABLES["data"], "line", Line)
    monkeypatch.setitem(TABLES["optimizer"], "sgd", sgd)


def experiment(name="mean_flow", **parts):
    training = {**OPTIONS, **parts.pop("training", {})}
    return experiment_of(name, training=training, **parts)


def train(folder, *args, **parts):
    state = loop.train(experiment(*args, **parts), folder, progress=False)
    return jax.device_get(state._replace(key=jax.random.key_data(state.key)))


def steps_in(folder):
    return sorted(int(p.name) for p in folder.glob("checkpoints/[0-9]*"))


# A longer run.


def test_a_finished_run_goes_on_where_no_schedule_knows_its_end(tmp_path):
    whole = train(tmp_path / "whole", training={"steps": 6})
    train(tmp_path / "run")
    extended = train(tmp_path / "run", training={"steps": 6})
    chex.assert_trees_all_equal(extended, whole)
    with pytest.raises(ValueError, match=r"training\.steps: 6 -> 4$"):
        train(tmp_path / "run")


def scheduled(schedule):
    return {"optimizer": use(adamw, schedule=schedule, warmup_steps=1)}


@pytest.mark.parametrize(
    ("name", "parts", "same"),
    [
        ("mean_flow", {}, True),
        ("mean_flow", scheduled("constant"), True),
        ("mean_flow", scheduled("cosine"), False),
        ("alpha_flow", {}, False),
    ],
)
def test_a_schedule_that_knows_the_end_is_seen_in_the_step(name, parts, same):
    model, teacher = model_of(experiment(name, **parts))
    batches = open_batches(model, model.experiment.data.build(), teacher)
    place = batches.get_state()
    with jax.numpy_dtype_promotion("standard"):
        assert takes_the_same_steps(model, 4, batches, teacher)
        assert takes_the_same_steps(model, 6, batches, teacher) == same
    assert batches.get_state() == place


def test_such_a_run_is_not_stretched(tmp_path):
    train(tmp_path)
    longer = model_of(experiment(training={"steps": 6}))[0]
    message = r"training\.steps: 4 -> 6 \(what a step does depends on it: a schedule"
    with pytest.raises(ValueError, match=message):
        run.claim(tmp_path, longer, lambda steps: steps != 4)
    run.claim(tmp_path, longer, lambda steps: steps == 4)
    assert run.load(tmp_path).experiment.training["steps"] == 6


# What may be corrected.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Held(Line):
    """A line with an option that only the evaluation reads, and one that it is not.

    Attributes:
        split: of the evaluation.
        kind: of the training.
    """

    split: str = "wrong"
    kind: str = "a"

    may_differ = frozenset({"split"})


def test_what_only_the_evaluation_reads_can_be_corrected(tmp_path, monkeypatch):
    monkeypatch.setitem(TABLES["data"], "held", Held)
    train(tmp_path, data=use(Held))
    train(tmp_path, data=use(Held, split="right"), evaluation={"samples": 11})
    corrected = run.load(tmp_path).experiment
    assert (corrected.data["split"], corrected.evaluation["samples"]) == ("right", 11)
    with pytest.raises(ValueError, match=r"data\.kind: a -> b"):
        train(tmp_path, data=use(Held, split="right", kind="b"))


def test_what_may_differ_is_an_option():
    assert Evaluation.may_differ == set(options_of(Evaluation))
    for thing in (Training, *TABLES["data"].values()):
        assert thing.may_differ <= set(options_of(thing))
    assert "test_split" in TABLES["data"]["tfds"].may_differ


# A start from another run.


def test_a_run_starts_from_the_average_of_another(tmp_path):
    first = train(tmp_path / "first")
    start = {"start_from": str(tmp_path / "first")}
    model = loop.make_model(experiment(training=start))
    state = loop.make_executor(model, None).init(jax.random.key(0))
    for field in ("params", "ema_params"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(state, field), first.ema_params
        )
    assert int(state.step) == 0


# A state that diverges.


def diverging():
    """The loss of a step is that of the parameters before its update."""
    return {"optimizer": use(sgd, learning_rate=3e38)}


def test_the_last_update_that_diverges_does_not_finish_a_run(tmp_path):
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=r"after step 1 .* nothing was"):
            train(tmp_path, training={"steps": 1}, **diverging())
        assert not steps_in(tmp_path)


def test_what_is_intact_and_how_to_go_on_is_said(tmp_path, monkeypatch):
    save = Checkpointer.save

    def spoil(self, step, state, *rest):
        if step > 2:
            spoilt = jax.tree.map(lambda x: x * np.nan, state.ema_params)
            state = state._replace(ema_params=spoilt)
        save(self, step, state, *rest)

    monkeypatch.setattr(Checkpointer, "save", spoil)
    message = "state after step 4 .*checkpoint of step 2 is intact.*--training.start-fr"
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=message):
            train(tmp_path)
        assert steps_in(tmp_path) == [2]
    monkeypatch.undo()


def test_a_preview_that_is_not_finite_is_no_picture(tmp_path):
    model, _ = model_of(experiment())
    state = model.init(jax.random.key(0))
    broken = jax.tree.map(lambda x: x * np.nan, state.ema_params)
    with pytest.warns(UserWarning, match="no picture of step 0: .* not all finite"):
        draw_preview(model, state._replace(ema_params=broken), tmp_path)
    assert not any(tmp_path.iterdir())


# Another process.


def test_a_run_that_is_in_use_is_left_alone(tmp_path):
    with record.lock(tmp_path), pytest.raises(ValueError, match="is in use by process"):
        train(tmp_path)
    assert not (tmp_path / "config.json").exists()
