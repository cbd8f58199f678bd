"""The entry points: every experiment runs, resumes bit for bit, and refuses bad input.

Training runs in processes of its own, as a user's would; they see one device.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import (
    build,
    choices,
    compare,
    config,
    configs,
    evaluate,
    members,
    run,
    samplers,
    teachers,
)
from experiments.config import Experiment
from flowjax import times

ROOT = Path(__file__).parents[1]


def environment():
    flags = os.environ.get("XLA_FLAGS", "")
    kept = " ".join(f for f in flags.split() if "device_count" not in f)
    return {**os.environ, "XLA_FLAGS": kept, "PYTHONPATH": str(ROOT)}


def launch(module, *arguments, cwd):
    command = [sys.executable, "-m", f"experiments.{module}", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def call(module, *arguments, cwd):
    process = launch(module, *arguments, cwd=cwd)
    output, _ = process.communicate(timeout=1500)
    return process.returncode, output


def final_state(folder):
    """The arrays of the newest checkpoint, by path."""
    trained = run.restore(folder)
    leaves = jax.tree_util.tree_leaves_with_path(trained.state)
    return {
        jax.tree_util.keystr(path): np.asarray(
            jax.random.key_data(leaf)
            if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else leaf
        )
        for path, leaf in leaves
    }


def offline(name):
    """Whether the data of an experiment is at hand without a download."""
    return configs.get(name).data.name not in ("mnist", "cifar10")


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """A finished smoke run of the default experiment and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    code, output = call("train", "--smoke", "--run", folder, cwd=folder.parent)
    assert code == 0, output
    return folder, output


def test_the_default_run_leaves_what_it_promises(digits_run):
    folder, output = digits_run
    assert "step 8/8" in output
    assert config.load(folder) == config.smoke(configs.get(configs.DEFAULT))
    rows = run.read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    figures = json.loads((folder / "evaluation.json").read_text())["figures"]
    assert list(figures) == ["real", "1-step", "2-step", "4-step", "ODE"]
    assert figures["1-step"]["evaluations"] == 1
    assert figures["ODE"]["evaluations"] > 4
    for name in ("samples.png", "loss.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert "| 1-step | 1 |" in (folder / "evaluation.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n for n in configs.files() if offline(n) and n != configs.DEFAULT]
)
def test_every_offline_experiment_runs(name, tmp_path):
    code, output = call("train", name, "--smoke", "--run", tmp_path / "r", cwd=tmp_path)
    assert code == 0, output
    assert (tmp_path / "r" / "samples.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in configs.files() if not offline(n)])
def test_experiments_on_downloads_run_on_digits(name, tmp_path):
    """Their data is not at hand; everything else of them runs, on the digits."""
    patch = ["--network.patch-size", "2", "--data.name", "digits"]
    code, output = call(
        "train", name, "--smoke", *patch, "--run", tmp_path / "r", cwd=tmp_path
    )
    assert code == 0, output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "names"),
    [
        ("density", tuple(members.MEMBERS)),
        # Those whose networks are not the plain one.
        ("digits", ("improved_mean_flow", "decoupled_mean_flow", "pi_flow")),
    ],
)
def test_every_member_trains_and_is_compared(data, names, tmp_path):
    """One smoke run of each, teachers included; the second call repeats nothing."""
    flags = ["--data", data, "--smoke", "--steps", "8", "--out", tmp_path]
    flags += ["--members", *names]
    code, output = call("compare", *flags, cwd=tmp_path)
    assert code == 0, output
    folder = tmp_path / f"{data}_8_smoke"
    rows = json.loads((folder / "comparison.json").read_text())
    assert tuple(rows) == names
    for name, (result,) in rows.items():
        assert {"1-step", "2-step", "4-step"} < set(result["figures"]), name
    table = (folder / "comparison.md").read_text()
    assert all(f"| {name} |" in table for name in names)
    assert (folder / "comparison.png").is_file()
    code, again = call("compare", *flags, cwd=tmp_path)
    assert code == 0
    assert "seed 0: 8 steps" in output
    assert "seed 0: 8 steps" not in again


def test_every_member_has_an_experiment_on_digits_and_on_a_density():
    for member in members.MEMBERS:
        for data in ("digits", "density"):
            name = f"{data}_{member}"
            assert configs.get(name).objective.name == member
            assert configs.summary(name)


def test_the_network_of_a_consistency_model_is_its_velocity():
    """So one of flow matching may be where its training starts."""
    experiment = config.smoke(configs.get("density_continuous_consistency"))
    dataset = build.open_data(experiment.data, seed=0)
    modules = build.make_modules(experiment, dataset, need_teacher=False)
    key = jax.random.key(0)
    params = build.init_parameters(modules, key, dataset, guidance=False)
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(key, p.shape), params)
    x, t = jax.random.normal(key, (8, 2)), jnp.linspace(0, 1, 8)
    velocity = modules["field"].apply(params["field"], x, t, t)
    bound = build.bind(experiment, modules, params)
    assert jnp.abs(velocity).max() > 0.1
    np.testing.assert_allclose(bound["field"](x, t, t), velocity, rtol=1e-5)
    np.testing.assert_allclose(bound["velocity"](x, t), velocity, rtol=1e-5)


def test_a_member_without_its_teacher_is_refused_before_any_work(tmp_path):
    code, output = call(
        "train", "digits_align_your_flow", "--run", tmp_path / "r", cwd=tmp_path
    )
    assert code == 1
    assert "is no run folder; train it first" in output
    assert not (tmp_path / "r").exists()


def test_without_a_velocity_there_is_no_ode_and_no_student(digits_run, monkeypatch):
    folder, _ = digits_run
    trained, student = run.restore(folder), configs.get("digits_align_your_flow")
    objective = dataclasses.replace(student.objective, teacher=str(folder))
    student = dataclasses.replace(student, objective=objective)
    assert "ODE" in evaluate._samplers(trained)
    assert teachers.load(student) is not None
    table = members.MEMBERS
    monkeypatch.setitem(table, "mean_flow", table["mean_flow"]._replace(velocity=False))
    assert "ODE" not in evaluate._samplers(trained)
    with pytest.raises(ValueError, match="mean_flow leaves no velocity"):
        teachers.load(student)


def test_a_comparison_has_a_column_for_every_sampler_of_any_member():
    row = {"agreement": 0.5, "recall": 0.5, "Fréchet": 1.0, "sliced W2": 1.0}
    jumps = {"figures": {"real": row, "1-step": row}, "seconds_per_step": 1.0}
    both = {"figures": {**jumps["figures"], "ODE": row}, "seconds_per_step": 1.0}
    text = compare.markdown({"a": [jumps], "b": [both]}, 8, (0,))
    heads, _, real, first, second = text.splitlines()[2:]
    assert "Fréchet, ODE" in heads
    widths = {line.count("|") for line in (heads, real, first, second)}
    assert len(widths) == 1


@pytest.mark.slow
def test_pmap_and_a_sharded_state_run(tmp_path):
    for flags in (["--training.parallel", "pmap"], ["--training.shard-state"]):
        folder = tmp_path / flags[-1].strip("-")
        code, output = call("train", "--smoke", *flags, "--run", folder, cwd=tmp_path)
        assert code == 0, output


def test_sampling_from_a_run(digits_run, tmp_path):
    folder, _ = digits_run
    out = tmp_path / "three"
    code, output = call(
        "sample", folder, "--count", "6", "--label", "3", "--out", out, cwd=tmp_path
    )
    assert code == 0, output
    archive = np.load(tmp_path / "three.npz")
    assert archive["x"].shape == (6, 8, 8, 1)
    assert set(archive["label"].tolist()) == {3}
    assert (tmp_path / "three.png").is_file()


@pytest.mark.slow
def test_sampling_adaptively_with_guidance(digits_run, tmp_path):
    folder, _ = digits_run
    flags = ["--steps", "0", "--guidance", "2", "--tolerance", "1e-2", "--count", "4"]
    code, output = call("sample", folder, *flags, "--out", tmp_path / "g", cwd=tmp_path)
    assert code == 0, output
    assert np.load(tmp_path / "g.npz")["x"].shape == (4, 8, 8, 1)


def test_the_names_of_the_flags_are_those_of_the_tables():
    assert get_args(choices.GridName) == tuple(choices.GRIDS)
    assert get_args(choices.DiffusionName) == tuple(choices.DIFFUSIONS)
    assert get_args(choices.RuleName) == tuple(choices.RULES)
    assert get_args(choices.MethodName)[:3] == ("jumps", "ode", "sde")
    assert get_args(choices.MethodName)[3:] == tuple(choices.SOLVERS)


@pytest.mark.slow
def test_every_method_samples_from_a_run_at_its_cost(digits_run):
    trained = run.restore(digits_run[0])
    grid, guide = times.uniform_grid(4), choices.Guidance(2.0, "optimal-scale")

    def draw(method, diffusion="sigma"):
        sampler = samplers.on_grid(trained, method, grid, diffusion, guide)
        return samplers.draw(trained, sampler, [1, 2], count=2, seed=0, batch_size=2)

    for name, solver in choices.SOLVERS.items():
        assert draw(name).evaluations == 2 * (4 * solver.per_step + solver.beyond)
    assert draw("jumps").evaluations == 8
    for diffusion in choices.DIFFUSIONS:
        x = draw("sde", diffusion).x
        assert x.shape == (2, 8, 8, 1)
        assert np.ptp(x) > 0


@pytest.mark.slow
def test_a_method_can_be_named_on_the_command_line(digits_run, tmp_path):
    folder, _ = digits_run
    flags = ["--method", "sde", "--grid", "shift 2", "--steps", "5", "--count", "4"]
    flags += ["--guidance", "2", "--rule", "rescaled", "--interval", "0.2", "0.8"]
    code, output = call("sample", folder, *flags, "--out", tmp_path / "s", cwd=tmp_path)
    assert code == 0, output
    assert np.isfinite(np.load(tmp_path / "s.npz")["x"]).all()
    flags = ["--method", "unipc", "--nfe", "4"]
    code, output = call("sample", folder, *flags, cwd=tmp_path)
    assert code != 0
    assert "leave out method" in output


@pytest.mark.slow
def test_a_killed_run_continues_bit_for_bit(tmp_path):
    flags = ["--smoke", "--training.seed", "3"]
    code, output = call("train", *flags, "--run", tmp_path / "whole", cwd=tmp_path)
    assert code == 0, output

    process = launch("train", *flags, "--run", tmp_path / "killed", cwd=tmp_path)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "killed" / "checkpoints").glob("4")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()

    code, output = call("train", *flags, "--run", tmp_path / "killed", cwd=tmp_path)
    assert code == 0, output
    whole, killed = final_state(tmp_path / "whole"), final_state(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    for name in whole:
        np.testing.assert_array_equal(whole[name], killed[name], err_msg=name)
    rows = [
        run.read_metrics(tmp_path / r / "metrics.jsonl") for r in ("whole", "killed")
    ]
    assert [[r["step"], r["loss"]] for r in rows[0]] == [
        [r["step"], r["loss"]] for r in rows[1]
    ]


def test_another_configuration_is_refused(digits_run):
    folder, _ = digits_run
    other = dataclasses.replace(
        config.load(folder), network=config.Network(width=32, depth=1, num_heads=2)
    )
    with pytest.raises(ValueError, match=r"network\.width: 16 -> 32"):
        run.claim(folder, other)


def test_a_folder_where_nothing_was_trained_is_free(tmp_path):
    run.claim(tmp_path, Experiment(network=config.Network(patch_size=3)))
    run.claim(tmp_path, Experiment())
    assert config.load(tmp_path) == Experiment()


def test_an_entry_that_a_run_did_not_know_has_its_default(digits_run, tmp_path):
    stored = config.load(digits_run[0])
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        run.claim(tmp_path, stored)
    old = config.to_dict(stored)
    del old["network"]["context_tokens"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    other = dataclasses.replace(stored.network, context_tokens=2)
    with pytest.raises(ValueError, match=r"network\.context_tokens: 0 -> 2"):
        run.claim(tmp_path, dataclasses.replace(stored, network=other))
    run.claim(tmp_path, stored)
    assert config.load(tmp_path) == stored


def test_evaluation_options_may_change(digits_run, tmp_path):
    stored = config.load(digits_run[0])
    run.claim(tmp_path, stored)
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    changed = dataclasses.replace(stored, evaluation=config.Evaluation(samples=7))
    run.claim(tmp_path, changed)
    assert config.load(tmp_path) == changed


def test_a_truncated_newest_checkpoint_falls_back_with_a_warning(digits_run, tmp_path):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(digits_run[0], folder)
    for file in (folder / "checkpoints" / "8").rglob("*"):
        if file.is_file() and file.stat().st_size > 100:
            os.truncate(file, file.stat().st_size // 2)
    with pytest.warns(RuntimeWarning, match="step 8"):
        trained = run.restore(folder)
    assert trained.step == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_experiment"], "experiment must be one of digits_mean_flow"),
        (["--training.stepz", "3"], "stepz"),
        (["--training.steps", "many"], "many"),
        (["--data.name", "no_such_set"], "name"),
        (["--training.steps", "-1"], "training.steps must be positive; got -1"),
        (["--training.checkpoint-every", "75"], "multiple of training.log_every=50"),
        (["--objective.share-equal", "0.7"], "multiple of 10"),
        (["--network.patch-size", "3"], "`patch_size`=3"),
        (["--network.num-heads", "5"], "num_heads"),
    ],
)
def test_bad_input_is_refused_before_any_work(arguments, message, tmp_path, capsys):
    from experiments import train

    with pytest.raises(SystemExit) as exit_:
        train.main([*arguments, "--run", str(tmp_path / "r")])
    captured = capsys.readouterr()
    assert exit_.value.code not in (0, None)
    # tyro frames and wraps its messages to the width of the terminal.
    text = f"{exit_.value.code} {captured.out} {captured.err}".replace("│", " ")
    assert message in " ".join(text.split())
    assert not (tmp_path / "r" / "metrics.jsonl").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run folder"):
        run.restore(tmp_path)
    run.claim(tmp_path, Experiment())
    with pytest.raises(FileNotFoundError, match="no checkpoints yet"):
        run.restore(tmp_path)


def test_configurations_survive_json():
    for name in configs.names():
        experiment = configs.get(name)
        stored = json.loads(json.dumps(config.to_dict(experiment)))
        assert config.from_dict(stored) == experiment
        assert configs.summary(name).endswith(".")
    with pytest.raises(ValueError, match="unknown entries of data: nam"):
        config.from_dict({"data": {"nam": 1}})


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    from experiments import train

    experiment = config.smoke(configs.get("density_mean_flow"))
    diverging = dataclasses.replace(
        experiment,
        optimizer=dataclasses.replace(
            experiment.optimizer, learning_rate=1e30, clip_norm=1e30
        ),
    )
    # optax's schedules multiply a float by an integer count.
    promotion = jax.numpy_dtype_promotion("standard")
    with promotion, pytest.raises(FloatingPointError, match="loss is"):
        train.train(diverging, tmp_path, progress=False)
    # It diverges before the first checkpoint, and what diverged must not be saved.
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


def test_help_names_every_entry(capsys):
    from experiments import train

    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = capsys.readouterr().out
    for words in ("--training.steps", "--objective.share-equal", "cifar10_mean_flow"):
        assert words in text


def test_a_cut_off_metrics_line_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 3')
    log = run.MetricLog(path, first_step=1)
    log.write(2, {"loss": 0.5})
    assert [row["loss"] for row in run.read_metrics(path)] == [2.0, 0.5]


def test_metrics_go_to_other_writers_too(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setitem(
        run.WRITERS, "tensorboard", lambda folder: lambda *row: seen.append(row)
    )
    log = run.MetricLog(tmp_path / "m.jsonl", first_step=0, log_to=["tensorboard"])
    log.write(3, {"loss": 0.5})
    assert seen == [(3, {"loss": 0.5})]


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")]
)
def test_a_writer_that_is_not_installed_is_named(name, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"`{module}` is not installed.*\[log\]"):
        run.MetricLog(tmp_path / "m.jsonl", first_step=0, log_to=[name])
