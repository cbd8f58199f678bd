"""Sample from a run folder.

    python -m experiments.sample runs/digits_mean_flow --steps 1 --count 80
    python -m experiments.sample runs/digits_mean_flow --steps 0 --guidance 2 --label 3
    python -m experiments.sample runs/digits_mean_flow --nfe 8
    python -m experiments.sample runs/digits_mean_flow --method unipc --steps 10
    python -m experiments.sample runs/digits_mean_flow --method sde --steps 50

Writes the samples (npz: x in [-1, 1], label) and a picture of them.
"""

from pathlib import Path

import numpy as np
import tyro

from experiments import choices, plots, samplers, solver_files
from experiments import run as run_folder


def main(
    run: tyro.conf.Positional[Path],
    *,
    method: choices.MethodName | None = None,
    steps: int = 1,
    grid: choices.GridName = "uniform",
    diffusion: choices.DiffusionName = "sigma",
    nfe: int | None = None,
    sampler: Path | None = None,
    count: int = 80,
    label: int | None = None,
    guidance: float = 1.0,
    rule: choices.RuleName = "extrapolation",
    interval: tuple[float, float] = (0.0, 1.0),
    tolerance: float = 1e-5,
    seed: int = 0,
    batch_size: int = 500,
    out: Path | None = None,
) -> None:
    """Sample from the newest checkpoint of a run.

    Args:
        run: the run folder.
        method: jumps of one evaluation each, the adaptive ode, the sde, or a solver
            that is a table; by default jumps, and with --steps 0 the ode.
        steps: of the grid; the ode chooses its own.
        grid: spacing of the steps.
        diffusion: coefficient of the sde.
        nfe: in place of steps, the best sampler with so many evaluations, as found by
            experiments.tune_sampler.
        sampler: the file it is in, by default sampler.json in the run folder; without
            nfe, a file that holds one solver.
        count: number of samples.
        label: the class to sample; by default all in turn.
        guidance: classifier-free guidance scale; 1 is none.
        rule: how the guided prediction is formed; optimal-scale is CFG-Zero*'s.
        interval: times at which to guide.
        tolerance: of the adaptive solver.
        seed: determines the noise.
        batch_size: samples drawn at a time.
        out: where to write, without suffix; by default samples_STEPS,
            samples_METHOD_STEPS or samples_nfe_NFE in the run folder.
    """
    try:
        trained = run_folder.restore(run)
        if steps < 0 or count < 1 or batch_size < 1:
            raise ValueError(
                "steps must not be negative, count and batch_size positive"
            )
        guide = choices.Guidance(guidance, rule, interval)
        if nfe is not None or sampler is not None:
            if method is not None:
                raise ValueError("nfe and sampler name a method; leave out method")
            entry = solver_files.load_entry(sampler or run / "sampler.json", nfe)
            chosen = samplers.tuned(trained, entry, guide)
            name = entry["name"] if nfe is None else f"nfe_{nfe}"
        elif method == "ode" or (method is None and steps == 0):
            chosen, name = samplers.adaptive(trained, tolerance, guide), "ode"
        else:
            times = choices.GRIDS[grid](steps)
            chosen = samplers.on_grid(
                trained, method or "jumps", times, diffusion, guide
            )
            name = f"{method}_{steps}" if method else str(steps)
        labels = _labels(trained.num_classes, label, count)
        x, evaluations = samplers.draw(
            trained, chosen, labels, count=count, seed=seed, batch_size=batch_size
        )
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error
    out = out or run / f"samples_{name}"
    out.parent.mkdir(parents=True, exist_ok=True)
    archive = out.with_name(out.name + ".npz")
    if labels is None:
        np.savez(archive, x=x)
    else:
        np.savez(archive, x=x, label=labels)
    picture = out.with_name(out.name + ".png")
    title = f"{evaluations} evaluations"
    if labels is None:
        plots.point_clouds({title: x}, picture)
    else:
        columns = min(10, count)
        rows = count // columns
        tiled = x[: rows * columns].reshape((rows, columns, *x.shape[1:]))
        plots.image_grid({title: tiled}, picture)
    print(f"{count} samples with {evaluations} evaluations each: {out}.npz, {picture}")


def _labels(
    num_classes: int | None, label: int | None, count: int
) -> np.ndarray | None:
    if num_classes is None:
        if label is not None:
            raise ValueError(f"this run was trained without labels; got label {label}")
        return None
    return np.arange(count) % num_classes if label is None else np.full(count, label)


if __name__ == "__main__":
    tyro.cli(main)
