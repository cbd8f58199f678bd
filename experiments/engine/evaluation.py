"""The evaluation of a run: its samples against held-out data, beside real data.

The row "real" is training data measured like samples, what a perfect model would get;
its agreement is the classifier's accuracy on the held-out data.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from experiments import plots
from experiments.data.base import try_to_draw
from experiments.engine import run as run_folder
from experiments.engine import samples
from experiments.engine.experiment import Evaluation
from experiments.engine.files import write_atomically
from experiments.engine.metric_log import read_metrics
from experiments.engine.model import Guidance
from experiments.engine.run import Trained
from experiments.engine.sampling import Jumps, Ode, Sampler
from experiments.language.sentence import use
from flowjax.times import uniform_grid


def evaluate(
    run: Path,
    *,
    options: Evaluation | None = None,
    step: int | None = None,
    averaged: bool = True,
    progress: bool = True,
) -> dict[str, dict[str, float]]:
    """Evaluate a checkpoint of a run and write the results into its folder.

    Args:
        run: the run folder.
        options: what to measure; None: what the run's experiment says.
        step: which checkpoint; None: the newest.
        averaged: take the averaged parameters, or those that the optimiser has moved.
        progress: whether to say what is being done.

    Returns:
        Figures by sampler and name.
    """
    say = partial(print, flush=True) if progress else lambda _: None
    say("evaluating: measuring real data")
    trained = run_folder.restore(run, step=step, averaged=averaged)
    if options is None:
        options = trained.experiment.evaluation.build()
    assert options is not None
    data = trained.experiment.data.build()
    form = trained.model.example.form
    reference = form.reference(data, options.samples, options.seed)
    real_x, count = reference.real["x"], len(reference.real["x"])
    real = {"evaluations": 0} | reference.measure(real_x)
    table = {"real": real | dict(reference.known)}
    groups = {"real": real_x}
    for name, sampler in _samplers(trained, options).items():
        say(f"evaluating: {count} samples, {name}")
        x, evaluations = samples.draw(
            trained,
            sampler,
            reference.real,
            count=count,
            seed=options.seed,
            batch_size=options.batch_size,
            guide=Guidance(options.guidance),
        )
        groups[name] = x
        table[name] = {"evaluations": evaluations} | reference.measure(x)
    say("evaluating: drawing pictures")
    text = _markdown(table)
    result = {"step": trained.step, "samples": count, "figures": table}
    # What is not the run's last word stands beside it.
    ending = "" if step is None else f"_step_{step}"
    ending += "" if averaged else "_raw"
    write_atomically(
        run / f"evaluation{ending}.json", json.dumps(result, indent=2) + "\n"
    )
    write_atomically(run / f"evaluation{ending}.md", text)
    picture = run / f"samples{ending}.png"
    try_to_draw(lambda: form.draw_groups(groups, reference.real, picture))
    plots.loss_curves(read_metrics(run / "metrics.jsonl"), run / "loss.png")
    say(f"\n{count} samples against held-out data:\n\n{text}")
    say(f"pictures, figures and checkpoints are in {run}")
    return table


def _samplers(trained: Trained, options: Evaluation) -> dict[str, Sampler]:
    chosen: dict[str, Sampler] = {
        f"{n}-step": Jumps(grid=use(uniform_grid, steps=n)) for n in options.steps
    }
    if trained.model.method.velocity:
        chosen["ODE"] = Ode(tolerance=options.tolerance)
    return chosen


def _markdown(table: Mapping[str, Mapping[str, Any]]) -> str:
    columns = list(next(iter(table.values())))
    lines = [
        "| sampler | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, row in table.items():
        cells = (f"{row[c]:.4g}" for c in columns)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
