"""The entry points: every experiment runs, resumes bit for bit, and refuses bad input.

Training runs in processes of its own, as a user's would; they see one device.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import compare, configs, train
from experiments.data.points import Mixture
from experiments.engine import evaluation, loop, run, samples
from experiments.engine.experiment import TABLES, Evaluation, smoke
from experiments.engine.metric_log import read_metrics
from experiments.engine.model import Guidance, Model
from experiments.engine.road import open_batches
from experiments.engine.sampling import DIFFUSIONS, SOLVERS, Jumps, Multistep, Sde
from experiments.engine.teachers import Exact, Run
from experiments.language.sentence import Use, use
from experiments.methods import METHODS
from flowjax.guidance import rules
from flowjax.times import uniform_grid

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
    return "name" not in configs.get(name).data


def loaded(folder):
    """The experiment of a run folder."""
    return run.load(folder).experiment


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
    assert loaded(folder) == smoke(configs.get(configs.DEFAULT))
    rows = read_metrics(folder / "metrics.jsonl")
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
    patch = ["--network.patch-size", "2", "--data", "digits"]
    code, output = call(
        "train", name, "--smoke", *patch, "--run", tmp_path / "r", cwd=tmp_path
    )
    assert code == 0, output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "names"),
    [
        ("density", tuple(METHODS)),
        # Those whose networks are not the plain one.
        ("digits", ("improved_mean_flow", "decoupled_mean_flow", "pi_flow")),
    ],
)
def test_every_method_trains_and_is_compared(data, names, tmp_path):
    """One smoke run of each, teachers included; the second call repeats nothing."""
    flags = ["--data", data, "--smoke", "--steps", "8", "--out", tmp_path]
    flags += ["--methods", *names]
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


def test_the_network_of_a_consistency_model_is_its_velocity():
    """So one of flow matching may be where its training starts."""
    experiment = smoke(configs.get("density_continuous_consistency"))
    model = Model(experiment, experiment.data.build().example())
    with jax.numpy_dtype_promotion("standard"):
        params = model.init(jax.random.key(0)).params
    key = jax.random.key(1)
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(key, p.shape), params)
    x, t = jax.random.normal(key, (8, 2)), jnp.linspace(0, 1, 8)
    velocity = model.modules["field"].apply(params["field"], x, t, t)
    functions = model.functions(params)
    assert jnp.abs(velocity).max() > 0.1
    np.testing.assert_allclose(functions.u(x, t, t), velocity, rtol=1e-5)
    np.testing.assert_allclose(functions.v(x, t), velocity, rtol=1e-5)


def test_a_run_on_the_line_is_drawn_and_taught_exactly(tmp_path):
    flags = ["--data", "mixture", "--teacher", "exact", "--run", tmp_path / "r"]
    flags += ["--method", "lagrangian_distillation", "--smoke"]
    code, output = call("train", "density_mean_flow", *flags, cwd=tmp_path)
    assert code == 0, output
    assert (tmp_path / "r" / "samples.png").is_file()


def test_taught_pairs_are_not_coupled_again():
    def by_rank(key, x0, x1, cond=None, /):
        """Pair in the order of the rows."""
        return x0, x1, cond

    experiment = configs.get("density_reflow").vary(
        coupling=use(by_rank), method={"teacher": use(Exact)}, data=use(Mixture)
    )
    model = loop.make_model(experiment)
    with pytest.raises(ValueError, match="would part them"):
        open_batches(model, experiment.data.build(), loop.open_teacher(model))


def test_a_consistency_model_needs_its_path():
    experiment = configs.get("density_continuous_consistency")
    linear = experiment.vary(path=configs.get("density_mean_flow").path)
    with pytest.raises(ValueError, match="--path trigonometric"):
        loop.make_model(linear)


def test_a_method_without_its_teacher_is_refused_before_any_work(tmp_path):
    code, output = call(
        "train", "digits_align_your_flow", "--run", tmp_path / "r", cwd=tmp_path
    )
    assert code == 1
    assert "is no run folder; train it first" in output
    assert not (tmp_path / "r").exists()


def test_without_a_velocity_there_is_no_ode_and_no_student(digits_run, monkeypatch):
    folder, _ = digits_run
    student = configs.get("digits_align_your_flow")
    teacher = use(Run, folder=str(folder))
    model = loop.make_model(student.vary(method={"teacher": teacher}))
    assert "ODE" in evaluation._samplers(run.restore(folder), Evaluation())
    assert loop.open_teacher(model) is not None
    monkeypatch.setattr(METHODS["mean_flow"], "velocity", False)
    assert "ODE" not in evaluation._samplers(run.restore(folder), Evaluation())
    with pytest.raises(ValueError, match="MeanFlow leaves no velocity"):
        loop.open_teacher(model)


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
    flags = ["--sampling", "ode", "--guidance", "2", "--sampling.tolerance", "1e-2"]
    flags += ["--count", "4", "--out", tmp_path / "g"]
    code, output = call("sample", folder, *flags, cwd=tmp_path)
    assert code == 0, output
    assert np.load(tmp_path / "g.npz")["x"].shape == (4, 8, 8, 1)


def test_what_is_said_wins_over_the_small_form(tmp_path):
    flags = ["--smoke", "--training.steps", "4", "--network.depth", "1"]
    flags += ["--training.previews"]
    code, output = call(
        "train", "density_mean_flow", *flags, "--run", tmp_path / "r", cwd=tmp_path
    )
    assert code == 0, output
    assert "step 4/4" in output
    assert loaded(tmp_path / "r").network["depth"] == 1
    assert [p.name for p in (tmp_path / "r/previews").iterdir()] == ["00000004.png"]


def test_a_run_that_was_told_the_guidance_is_sampled_by_it(tmp_path):
    flags = ["--smoke", "--network.guidance", "--training.steps", "4"]
    code, output = call("train", *flags, "--run", tmp_path / "r", cwd=tmp_path)
    assert code == 0, output
    flags = ["--guidance", "2", "--count", "4", "--label", "3"]
    code, output = call("sample", tmp_path / "r", *flags, cwd=tmp_path)
    assert code == 0, output
    name = "samples_jumps_1_label_3_guidance_2_extrapolation.npz"
    assert (tmp_path / "r" / name).is_file()


@pytest.mark.slow
def test_every_way_of_sampling_a_run_has_its_cost(digits_run):
    trained = run.restore(digits_run[0])
    grid = use(uniform_grid, steps=4)
    guide = Guidance(2.0, rules.optimal_scale)

    def draw(sampler):
        options = {"count": 2, "seed": 0, "batch_size": 2, "guide": guide}
        return samples.draw(trained, sampler, {"label": np.array([1, 2])}, **options)

    for thing in SOLVERS.values():
        solver = Use(thing, {"grid": grid})
        nodes = len(solver.build(interpolant=trained.model.path).times)
        assert draw(Multistep(solver=solver)).evaluations == 2 * nodes
    assert draw(Jumps(grid=grid)).evaluations == 8
    for name in DIFFUSIONS:
        diffusion = Use(DIFFUSIONS[name])
        if name == "dance_grpo":
            diffusion = diffusion.vary(level=0.5)
        x = draw(Sde(grid=grid, diffusion=diffusion)).x
        assert x.shape == (2, 8, 8, 1)
        assert np.ptp(x) > 0


@pytest.mark.slow
def test_a_sampler_is_said_on_the_command_line(digits_run, tmp_path):
    folder, _ = digits_run
    flags = ["--sampling", "sde", "--grid", "shifted_grid", "--grid.shift", "2"]
    flags += ["--grid.steps", "5", "--diffusion", "memoryless", "--count", "4"]
    flags += ["--guidance", "2", "--rule", "rescaled", "--interval", "0.2", "0.8"]
    code, output = call("sample", folder, *flags, "--out", tmp_path / "s", cwd=tmp_path)
    assert code == 0, output
    assert np.isfinite(np.load(tmp_path / "s.npz")["x"]).all()
    flags = ["--sampling", "ode", "--nfe", "4"]
    code, output = call("sample", folder, *flags, cwd=tmp_path)
    assert code != 0
    assert "leave out sampling" in output


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
    rows = [read_metrics(tmp_path / r / "metrics.jsonl") for r in ("whole", "killed")]
    assert [[r["step"], r["loss"]] for r in rows[0]] == [
        [r["step"], r["loss"]] for r in rows[1]
    ]


def claimed(folder, model, *, trained=True):
    """A folder that was claimed for a model, as if something had been trained."""
    run.claim(folder, model)
    if trained:
        (folder / "checkpoints" / "8").mkdir(parents=True)


def with_parts(model, **parts):
    """The same model of a changed experiment."""
    return Model(model.experiment.vary(**parts), model.example)


def test_another_experiment_is_refused(digits_run):
    folder, _ = digits_run
    other = with_parts(run.load(folder), network={"width": 32})
    with pytest.raises(ValueError, match=r"network\.width: 16 -> 32"):
        run.claim(folder, other)


def test_a_folder_where_nothing_was_trained_is_free(tmp_path, digits_run):
    model = run.load(digits_run[0])
    claimed(tmp_path, with_parts(model, network={"patch_size": 2}), trained=False)
    run.claim(tmp_path, model)
    assert loaded(tmp_path) == model.experiment


def test_an_entry_that_a_run_did_not_know_has_its_default(digits_run, tmp_path):
    model = run.load(digits_run[0])
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        run.claim(tmp_path, model)
    old = json.loads((digits_run[0] / "config.json").read_text())
    del old["network"]["context_tokens"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    other = with_parts(model, network={"context_tokens": 2})
    with pytest.raises(ValueError, match=r"network\.context_tokens: 0 -> 2"):
        run.claim(tmp_path, other)
    run.claim(tmp_path, model)
    assert loaded(tmp_path) == model.experiment


def test_evaluation_options_may_change(digits_run, tmp_path):
    model = run.load(digits_run[0])
    claimed(tmp_path, model)
    changed = with_parts(model, evaluation={"samples": 11})
    run.claim(tmp_path, changed)
    assert loaded(tmp_path) == changed.experiment


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "can't be read"),
        ("[]", "it is no object"),
        ("{}", "lacks network"),
        ('{"objective": {}, "example": {}}', "earlier form"),
        ('{"example": {"event": ["a"]}}', "lacks network"),
    ],
)
def test_a_damaged_configuration_names_its_file(text, message, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        run.load(tmp_path)
    assert "config.json" in str(error.value)


def test_a_run_is_read_without_its_data(digits_run, monkeypatch):
    def closed(*_, **__):
        raise AssertionError("the data were opened")

    monkeypatch.setattr("experiments.data.images._load", closed)
    trained = run.restore(digits_run[0])
    options = {"count": 2, "seed": 0, "batch_size": 2}
    row = {"label": np.array([1, 2])}
    assert samples.draw(trained, Jumps(), row, **options).x.shape == (2, 8, 8, 1)


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
        (["digits_alphaflow"], "did you mean digits_alpha_flow"),
        (["--training.stepz", "3"], "did you mean --training.steps"),
        (["--training.steps", "many"], "many"),
        (["--data", "no_such_set"], "data must be one of digits, tfds"),
        (["--data", "tfds", "--data.name", "no_such_set"], "`name` must be"),
        (["--training.steps", "-1"], "training.steps must be positive; got -1"),
        (["--training.checkpoint-every", "75"], "multiple of training.log_every=50"),
        (["--pairs.share-equal", "0.7"], "multiple of 10"),
        (["--network.patch-size", "3"], "`patch_size`=3"),
        (["--network.num-heads", "5"], "num_heads"),
        (["digits_flow_matching", "--method.segments", "7"], "it reads --guidance"),
        (["--smoke", "density_mean_flow"], "the experiment comes first"),
        (["density_mean_flow", "--network.guidance"], "guidance needs a condition"),
        (
            ["--data.condition-dropout", "0", "--evaluation.guidance", "2"],
            "condition_dropout is 0",
        ),
        (["--training.seed", "-1"], "training.seed must not be negative"),
        (["--network.width", "-4"], "`width` must be"),
        (
            ["density_mean_flow", "--evaluation.guidance", "2"],
            "guidance needs a condition",
        ),
    ],
)
def test_bad_input_is_refused_before_any_work(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        train.main([*arguments, "--run", str(tmp_path / "r")])
    captured = capsys.readouterr()
    assert exit_.value.code not in (0, None)
    # tyro frames and wraps its messages to the width of the terminal.
    text = f"{exit_.value.code} {captured.out} {captured.err}".replace("│", " ")
    assert message in " ".join(text.split())
    assert not (tmp_path / "r" / "metrics.jsonl").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path, digits_run):
    with pytest.raises(FileNotFoundError, match="no run folder"):
        run.restore(tmp_path)
    run.claim(tmp_path, run.load(digits_run[0]))
    with pytest.raises(FileNotFoundError, match="no checkpoints yet"):
        run.restore(tmp_path)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    experiment = smoke(configs.get("density_mean_flow"))
    diverging = experiment.vary(optimizer={"learning_rate": 1e30, "clip_norm": 1e30})
    # optax's schedules multiply a float by an integer count.
    promotion = jax.numpy_dtype_promotion("standard")
    with promotion, pytest.raises(FloatingPointError, match="loss is"):
        loop.train(diverging, tmp_path, progress=False)
    # It diverges before the first checkpoint, and what diverged must not be saved.
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


def test_the_list_of_experiments_is_printed(capsys):
    train.main(["--list"])
    text = capsys.readouterr().out
    for name in ("cifar10_mean_flow", "alpha_flow", *TABLES["path"]):
        assert name in text
