r"""Sample from a run folder.

    python -m experiments.sample runs/digits_mean_flow --grid.steps 2 --count 80
    python -m experiments.sample runs/digits_mean_flow --sampling ode --guidance 2
    python -m experiments.sample runs/digits_mean_flow --nfe 8
    python -m experiments.sample runs/digits_mean_flow --sampling multistep \
        --solver unipc --grid shifted_grid --grid.steps 10 --grid.shift 2
    python -m experiments.sample runs/digits_mean_flow --sampling sde --grid.steps 50

Writes the samples as what was trained on: npz with x (images uint8, arrays in the units
of the file) and the conditions, a table as CSV; and a picture of them.
"""

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.engine import run as run_folder
from experiments.engine import samples, solver_files
from experiments.engine.experiment import TABLES
from experiments.engine.model import Guidance
from experiments.engine.run import Trained
from experiments.engine.sampling import Jumps, Sampler, Tuned
from experiments.entry import entry_point
from experiments.language import command
from experiments.language.sentence import Use, label, options_of, use
from flowjax.guidance import rules
from flowjax.times import uniform_grid


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """How to sample, and where to.

    Attributes:
        sampling: how samples are drawn.
        nfe: in place of sampling, the best sampler with so many evaluations, as found
            by experiments.tune_sampler.
        sampler_file: the file it is in; None: sampler.json in the run folder. Without
            nfe, a file that holds one solver.
        count: number of samples.
        label: the class to sample, by name or number; None: all in turn.
        vector: the vector to condition on, in the units of the data; none: those of
            some training examples in turn.
        each: write every image into a PNG of its own too, in a folder.
        guidance: classifier-free guidance scale; 1 is none.
        rule: how the guided prediction is formed; optimal_scale is CFG-Zero*'s.
        interval: times at which to guide.
        step: which checkpoint; None: the newest.
        averaged: sample the averaged parameters, or those that the optimiser has moved.
        seed: determines the noise.
        batch_size: samples drawn at a time.
        out: where to write, without suffix; None: a name after the sampler in the run
            folder.
    """

    sampling: Use = use(Jumps)
    nfe: int | None = None
    sampler_file: str | None = None
    count: int = 80
    label: str | None = None
    vector: tuple[float, ...] = ()
    each: bool = False
    guidance: float = 1.0
    rule: Use = use(rules.extrapolation)
    interval: tuple[float, float] = (0.0, 1.0)
    step: int | None = None
    averaged: bool = True
    seed: int = 0
    batch_size: int = 500
    out: str | None = None

    def __post_init__(self) -> None:
        """Refuse what would fail later.

        Raises:
            ValueError: if an option is out of range.
        """
        if self.count < 1 or self.batch_size < 1:
            raise ValueError(
                f"count and batch_size must be positive; got {self.count} and "
                f"{self.batch_size}"
            )
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance must be a finite number; got {self.guidance}")
        unused = self.rule.thing is not rules.extrapolation or self.interval != (0, 1)
        if self.guidance == 1.0 and unused:
            raise ValueError(
                "rule and interval need a guidance other than 1, which is none"
            )

    def sampler(self, run: Path) -> tuple[Sampler, str]:
        """Return the chosen sampler and a name for files."""
        if self.nfe is None and self.sampler_file is None:
            return self.sampling.build(), _name(self.sampling)
        if self.sampling != use(Jumps):
            raise ValueError("nfe and sampler_file name a sampler; leave out sampling")
        file = Path(self.sampler_file) if self.sampler_file else run / "sampler.json"
        entry = solver_files.load_entry(file, self.nfe)
        return Tuned(entry), entry["name"] if self.nfe is None else f"nfe_{self.nfe}"

    def ending(self) -> str:
        """Return what else tells the files of two samplings apart."""
        words = []
        if self.label is not None:
            words.append(f"label_{self.label}")
        if self.vector:
            words.append("vector_" + "_".join(f"{v:g}" for v in self.vector))
        if self.guidance != 1.0:
            words.append(f"guidance_{self.guidance:g}_{label(self.rule.thing)}")
        if self.interval != (0.0, 1.0):
            words.append("_".join(f"{t:g}" for t in self.interval))
        if self.seed:
            words.append(f"seed_{self.seed}")
        if self.step is not None:
            words.append(f"step_{self.step}")
        if not self.averaged:
            words.append("raw")
        return "".join(f"_{word}" for word in words)


def _name(sampling: Use) -> str:
    """Return a name for the files of a sampler: what was chosen, and how."""
    words: list[str] = []
    for one in sampling.walk():
        if one.thing is not uniform_grid:
            words.append(label(one.thing))
        words += [
            str(one[name])
            for name, option in options_of(one.thing).items()
            if option.kind is not None and one[name] != option.default
        ]
    return "_".join(words)


def sample(run: Path, options: Command) -> str:
    """Sample from a checkpoint of a run; return what was done.

    Raises:
        ValueError: if the run can't be sampled in this way.
        FileNotFoundError: if the folder holds no run or no such sampler.
    """
    trained = run_folder.restore(run, step=options.step, averaged=options.averaged)
    sampler, name = options.sampler(run)
    row = _conditions(trained, options)
    x, evaluations = samples.draw(
        trained,
        sampler,
        row,
        count=options.count,
        seed=options.seed,
        batch_size=options.batch_size,
        guide=Guidance(options.guidance, options.rule.build(), options.interval),
    )
    out = (
        Path(options.out) if options.out else run / f"samples_{name}{options.ending()}"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    example = trained.model.example
    title = f"{evaluations} evaluations"
    files = example.form.write(x, example.conditions.in_units(row), out, title)
    if options.each:
        files.append(example.form.write_each(x, out))
    return f"{options.count} samples with {evaluations} evaluations each: " + ", ".join(
        map(str, files)
    )


def _conditions(trained: Trained, options: Command) -> dict[str, np.ndarray]:
    """Return the conditions of the samples by name.

    Raises:
        ValueError: if one is given that the run was not trained with.
    """
    conditions = trained.model.example.conditions
    row = trained.conditions.rows(np.arange(options.count))
    if options.label is not None:
        row["label"] = np.full(options.count, conditions.label_of(options.label))
    if options.vector:
        if "vector" not in conditions.kinds:
            raise ValueError(
                f"this run was trained without a vector; got vector {options.vector}"
            )
        row["vector"] = np.tile(conditions.scale(options.vector), (options.count, 1))
    return row


@entry_point
def main(arguments: Sequence[str]) -> None:
    """Parse ``RUN [--joint NAME] [--option VALUE] …`` and sample."""
    given = [a for a in arguments[:1] if not a.startswith("-")]
    said = command.parse(
        Use(Command),
        TABLES,
        arguments[len(given) :],
        program="python -m experiments.sample RUN",
        description="Sample from the newest checkpoint of a run folder.",
    )
    if not given:
        raise ValueError("sample needs the run folder as its first argument")
    print(sample(Path(given[0]), said.build()))


if __name__ == "__main__":
    main(sys.argv[1:])
