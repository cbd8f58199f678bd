"""Find the best sampler of a run for each number of evaluations.

    python -m experiments.tune_sampler runs/digits_flow_matching --nfe 4 8 16 --boss
    python -m experiments.sample runs/digits_flow_matching --nfe 8

Every solver of flowjax.sampling.solvers on every grid, the jumps of an average velocity
and, if asked for, the learned solvers are compared with a fine solution of the run's
ODE on the same noise: the error is the root mean square distance over samples and
entries. What learns does so on other noise, and the winner's error is measured again on
noise that had no part in choosing it.

Writes tuning.json, tuning.png and sampler.json (the winners) into the run folder. An
evaluation is one of the guided field, which may call its network twice.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments import plots
from experiments.engine import learn_solver, solver_files
from experiments.engine import run as run_folder
from experiments.engine.files import write_atomically
from experiments.engine.learn_solver import Bench
from experiments.engine.run import Trained
from experiments.engine.sampling import SOLVERS
from experiments.engine.solver_files import Entry
from experiments.entry import entry_point
from experiments.language.sentence import Use, use
from experiments.methods.base import jumps
from flowjax import times
from flowjax.interpolants import Interpolant
from flowjax.sampling.multistep import MultistepSolver

GRIDS: dict[str, Use] = {
    "uniform": use(times.uniform_grid),
    "shift 2": use(times.shifted_grid, shift=2.0),
    "shift 1/2": use(times.shifted_grid, shift=0.5),
    "power 2": use(times.power_grid, power=2.0),
    "circular": use(times.circular_grid),
    "log-SNR": use(times.log_snr_grid),
    "EDM": use(times.edm_grid),
}
"""The grids that are tried, by a name for people."""


def solvers_of(nfe: int, path: Interpolant) -> Iterator[tuple[str, MultistepSolver]]:
    """Yield every solver on every grid that takes ``nfe`` evaluations."""
    for name in SOLVERS:
        for grid_name, grid in GRIDS.items():
            # A step takes at least one evaluation, and at most four.
            for steps in range(1, nfe + 1):
                given = grid.vary(steps=steps)
                try:
                    solver = Use(SOLVERS[name], {"grid": given}).build(interpolant=path)
                except ValueError:  # fewer steps than its order
                    continue
                if len(solver.times) == nfe:
                    yield f"{name}, {grid_name}", solver


def candidates(trained: Trained, nfe: int) -> Iterator[Entry]:
    """Yield all samplers of ``nfe`` evaluations that need no learning."""
    model = trained.model
    for name, solver in solvers_of(nfe, model.path):
        yield {"name": name, "solver": solver}
    if model.method.few_step is jumps:
        for name, grid in GRIDS.items():
            at = grid.vary(steps=nfe).build(interpolant=model.path)
            yield {"name": f"jumps, {name}", "jumps": at.tolist()}


def tune(
    bench: Bench,
    nfe: tuple[int, ...],
    *,
    learners: dict[str, learn_solver.Learner],
    count: int,
) -> tuple[dict[str, Any], dict[int, Entry]]:
    """Return the errors by evaluations and name, and the winners as entries.

    Args:
        bench: the run and its fine solutions.
        nfe: numbers of evaluations.
        learners: by name, `experiments.engine.learn_solver.LEARNERS` or some of them.
        count: samples to choose on, and again as many to measure the winners.
    """
    choosing, held_out = (bench.draw(use, count) for use in ("choose", "held out"))
    errors: dict[str, dict[str, float]] = {}
    winners: dict[int, Entry] = {}
    report: dict[str, dict[str, Any]] = {}
    for n in nfe:
        found = {entry["name"]: entry for entry in candidates(bench.trained, n)}
        for name, learner in learners.items():
            for kind, solver in learner(bench, n):
                found[f"{name}, {kind}"] = {"name": f"{name}, {kind}", "solver": solver}
        table = {name: bench.error(entry, choosing) for name, entry in found.items()}
        best = min(table, key=lambda name: table[name])
        winners[n] = found[best]
        errors[str(n)] = dict(sorted(table.items(), key=lambda item: item[1]))
        report[str(n)] = {
            "name": best,
            "error": table[best],
            "held out": bench.error(found[best], held_out),
            "uniform Euler, held out": bench.error(found[BASELINE], held_out),
        }
        print(
            f"{n} evaluations: {best}, {report[str(n)]['held out']:.3g} from the fine "
            f"solution; {BASELINE}: {report[str(n)]['uniform Euler, held out']:.3g}",
            flush=True,
        )
    return {"winners": report, "errors": errors}, winners


BASELINE = "euler, uniform"


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the error of every family on its best grid, and of the winners."""
    figure, axis = plots.plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    lines: dict[str, dict[int, float]] = {}
    for n, table in result["errors"].items():
        for name, error in table.items():
            if np.isfinite(error):
                family = lines.setdefault(name.split(",")[0], {})
                family[int(n)] = min(error, family.get(int(n), np.inf))
    for number, (family, points) in enumerate(lines.items()):
        style = ("-", "--", ":")[number // 10 % 3]
        # The dots: one number of evaluations makes no line.
        places = zip(*sorted(points.items()), strict=True)
        axis.plot(*places, style, label=family, lw=1, marker=".")
    best = {int(n): row["held out"] for n, row in result["winners"].items()}
    axis.plot(*zip(*sorted(best.items()), strict=True), "k*", label="winner, held out")
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="evaluations",
        ylabel="RMS distance to the fine solution",
        xticks=sorted(best),
        xticklabels=sorted(best),
    )
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=130)
    plots.plt.close(figure)


@entry_point
def main(
    run: tyro.conf.Positional[Path],
    *,
    nfe: tuple[int, ...] = (4, 8, 16),
    bespoke: bool = False,
    boss: bool = False,
    search: bool = False,
    guidance: float = 1.0,
    tolerance: float = 1e-5,
    count: int = 256,
    learning_steps: int = 300,
    seed: int = 0,
) -> None:
    """Tune the sampler of the newest checkpoint of a run.

    Args:
        run: the run folder.
        nfe: numbers of evaluations to find the best sampler for.
        bespoke: learn Bespoke solvers.
        boss: choose BOSS's grids.
        search: learn steps and coefficients by solver search.
        guidance: classifier-free guidance scale that the winners are for; 1 is none.
        tolerance: of the fine solution.
        count: samples to choose on, and again as many to measure the winners.
        learning_steps: optimiser steps of each learned solver.
        seed: determines the noise.
    """
    wanted = {"bespoke": bespoke, "boss": boss, "search": search}
    if not nfe or min(nfe) < 1 or count < 1 or learning_steps < 1:
        raise ValueError("nfe, count and learning-steps must be positive")
    bench = Bench(run_folder.restore(run), guidance, tolerance, seed)
    learners = {
        name: partial(learner, steps=learning_steps)
        for name, learner in learn_solver.LEARNERS.items()
        if wanted[name]
    }
    result, winners = tune(bench, nfe, learners=learners, count=count)
    settings = {
        "step": bench.trained.step,
        "guidance": guidance,
        "tolerance": tolerance,
        "count": count,
        "seed": seed,
    }
    text = json.dumps({**settings, **result}, indent=1) + "\n"
    write_atomically(run / "tuning.json", text)
    solver_files.save_entries(run / "sampler.json", winners)
    draw(result, run / "tuning.png")
    print(f"{run / 'sampler.json'}, tuning.json and tuning.png are written", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
