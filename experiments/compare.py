"""Train methods under one budget and compare their few-step samples.

    python -m experiments.compare --methods mean_flow alpha_flow lagrangian
    python -m experiments.compare --data density --steps 3000 --seeds 0 1 2

Every method takes the same number of optimiser steps on the same data with the same
network and optimiser; only its objective differs. Each run has a folder of its own
below --out and is not repeated: the same command again continues where it stopped.
Writes comparison.md, comparison.json and comparison.png.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from experiments import configs, plots
from experiments.engine import run
from experiments.engine.evaluation import evaluate
from experiments.engine.experiment import Experiment, to_dict
from experiments.engine.experiment import smoke as shrink
from experiments.engine.files import write_atomically
from experiments.engine.loop import train
from experiments.engine.metric_log import read_metrics
from experiments.engine.stopping import Stop
from experiments.entry import entry_point
from experiments.language.sentence import REQUIRED, Use
from experiments.methods import METHODS

Figures = dict[str, dict[str, float]]

TEACHER = "teacher"
"""The experiment that others learn from, on every data."""


def learns_from_a_run(experiment: Experiment) -> bool:
    """Say whether an experiment reads another run."""
    method = experiment.method
    taught = "teacher" in method and method["teacher"] not in (None, REQUIRED)
    return taught or experiment.training["start_from"] is not None


FROM_SCRATCH = tuple(
    name
    for name in METHODS
    if not learns_from_a_run(configs.get(f"digits_{name}")) and name != "flow_matching"
)

BEST = {"agreement": max, "recall": max, "Fréchet": min, "sliced W2": min, "W2": min}
"""The figures that are compared, and whether more or less is better."""


@entry_point
def main(
    *,
    data: Literal["digits", "density"] = "digits",
    methods: tuple[str, ...] = ("flow_matching", *FROM_SCRATCH),
    steps: int = 1000,
    seeds: tuple[int, ...] = (0,),
    out: Path = Path("runs/compare"),
    smoke: bool = False,
) -> None:
    """Train and compare.

    Args:
        data: digits, or the density of density_mean_flow.
        methods: names of methods; by default all that need no teacher.
        steps: optimiser steps of each method, and of the teacher if one is needed.
        seeds: one run of every method for each.
        out: where the runs and the comparison go.
        smoke: tiny runs, to see in a minute that everything works.
    """
    if not methods or not seeds:
        raise ValueError("methods and seeds must name at least one")
    if unknown := [name for name in methods if name not in METHODS]:
        raise ValueError(
            f"methods must be among {', '.join(METHODS)}; got {', '.join(unknown)}"
        )
    folder = out / f"{data}_{steps}{'_smoke' if smoke else ''}"
    with Stop() as stop:
        results = {
            name: [
                _result(data, name, steps, seed, folder, stop, smoke=smoke)
                for seed in seeds
            ]
            for name in methods
        }
    text = markdown(results, steps, seeds)
    stored = {name: rows for name, rows in results.items()}
    write_atomically(folder / "comparison.json", json.dumps(stored, indent=2) + "\n")
    write_atomically(folder / "comparison.md", text)
    plots.few_step_quality(_series(results), folder / "comparison.png")
    print(f"\n{text}\npicture and figures are in {folder}")


def experiment(
    data: str, name: str, steps: int, seed: int, teacher: Path
) -> Experiment:
    """Return a method's experiment under the budget."""
    base, every = configs.get(f"{data}_{name}"), max(steps // 4, 1)
    budget = base.vary(
        training={
            "steps": steps,
            "seed": seed,
            "log_every": every,
            "checkpoint_every": 2 * every,
            "keep_checkpoints": 1,
        }
    )
    if not learns_from_a_run(base):
        return budget
    if base.training["start_from"] is not None:
        budget = budget.vary(training={"start_from": str(teacher)})
    if "teacher" in base.method and isinstance(base.method["teacher"], Use):
        taught = base.method["teacher"].vary(folder=str(teacher))
        budget = budget.vary(method={"teacher": taught})
    return budget


def _result(
    data: str,
    name: str,
    steps: int,
    seed: int,
    folder: Path,
    stop: Stop,
    *,
    smoke: bool,
) -> dict[str, Any]:
    """Return the figures of one run, trained unless it already is."""
    teacher = folder / f"{TEACHER}_{seed}"
    config = experiment(data, name, steps, seed, teacher)
    if learns_from_a_run(config):
        _result(data, TEACHER, steps, seed, folder, stop, smoke=smoke)
    if smoke:
        config = shrink(config)
    place = folder / f"{name}_{seed}"
    finished = place / "comparison.json"
    if finished.is_file() and to_dict(run.load(place).experiment) == to_dict(config):
        return json.loads(finished.read_text())
    training = config.training
    print(f"{name}, seed {seed}: {training['steps']} steps", flush=True)
    try:
        train(config, place, progress=False, stop=stop)
        figures = evaluate(place, progress=False)
    except FloatingPointError as error:
        # A method that diverges under the common settings is a result.
        result: dict[str, Any] = {"failure": str(error)}
    else:
        rows = read_metrics(place / "metrics.jsonl")
        speed = np.median([r["rows_per_second"] for r in rows])
        speed = training["batch_size"] / speed
        result = {"figures": figures, "seconds_per_step": float(speed)}
    write_atomically(finished, json.dumps(result, indent=2) + "\n")
    return result


def markdown(
    results: dict[str, list[dict[str, Any]]], steps: int, seeds: Sequence[int]
) -> str:
    """Return one table: a row per method, a column per sampler and figure."""
    complete = [
        r["figures"] for rows in results.values() for r in rows if "figures" in r
    ]
    if not complete:
        return "Every run failed.\n"
    # Not every method has every sampler.
    names = list(dict.fromkeys(n for row in complete for n in row if n != "real"))
    measured = [m for m in BEST if m in complete[0]["real"]]
    heads = [f"{m}, {n}" for m in measured for n in names]
    lines = [
        f"{steps} steps each, seeds {', '.join(map(str, seeds))}; mean over the seeds"
        + (" ± half the range." if len(seeds) > 1 else "."),
        "",
        "| method | " + " | ".join(heads) + " | ms/step |",
        "|---" * (len(heads) + 2) + "|",
    ]
    for name, rows in [("real", []), *results.items()]:
        done = [r for r in rows if "figures" in r]
        if name != "real" and not done:
            lines.append(f"| {name} | diverged" + " | " * (len(heads) + 1) + "|")
            continue
        cells = []
        for m in measured:
            for n in names:
                source = [complete[0]["real"]] if name == "real" else None
                rows_of = source or [r["figures"][n] for r in done if n in r["figures"]]
                cells.append(_spread([row[m] for row in rows_of]))
        speed = (
            ""
            if name == "real"
            else _spread([1000 * r["seconds_per_step"] for r in done])
        )
        failed = len(rows) - len(done)
        label = name + (f" ({failed} of {len(rows)} diverged)" if failed else "")
        lines.append(f"| {label} | " + " | ".join(cells) + f" | {speed} |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    middle = f"{np.mean(values):.3g}"
    if len(values) < 2:
        return middle
    return f"{middle} ± {(max(values) - min(values)) / 2:.1g}"


def _series(
    results: dict[str, list[dict[str, Any]]],
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Return ``figure -> method -> sampler -> values over the seeds``."""
    series: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name, rows in results.items():
        for row in rows:
            for sampler, figures in row.get("figures", {}).items():
                for m in BEST:
                    if m in figures:
                        place = series.setdefault(m, {}).setdefault(name, {})
                        place.setdefault(sampler, []).append(figures[m])
    return series


if __name__ == "__main__":
    tyro.cli(main)
