r"""Measure the samples of a run against held-out data, each beside real data.

    python -m experiments.evaluate runs/digits_mean_flow
    python -m experiments.evaluate runs/digits_mean_flow --evaluation.steps 1 8 \
        --evaluation.guidance 2 --step 2000 --no-averaged

Writes evaluation.json, evaluation.md, samples.png and loss.png into the run folder. The
row "real" is training data measured like samples, what a perfect model would get; its
agreement is the classifier's accuracy on the held-out data.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.engine import run as run_folder
from experiments.engine.evaluation import evaluate
from experiments.engine.experiment import TABLES, Evaluation
from experiments.entry import entry_point
from experiments.language import command
from experiments.language.sentence import Use, use


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What to measure, of which parameters.

    Attributes:
        evaluation: what to measure.
        step: which checkpoint; None: the newest.
        averaged: take the averaged parameters, or those that the optimiser has moved.
    """

    evaluation: Use = use(Evaluation)
    step: int | None = None
    averaged: bool = True


@entry_point
def main(arguments: Sequence[str]) -> None:
    """Parse ``RUN [--evaluation.option VALUE] [--step N]`` and evaluate."""
    given = [a for a in arguments[:1] if not a.startswith("-")]
    options = {}
    if given:  # its own evaluation is the default
        options["evaluation"] = run_folder.load(Path(given[0])).experiment.evaluation
    said = command.parse(
        Use(Command, options),
        TABLES,
        arguments[len(given) :],
        program="python -m experiments.evaluate RUN",
        description="Measure the samples of a run folder against held-out data.",
    )
    if not given:
        raise ValueError("evaluate needs the run folder as its first argument")
    evaluate(
        Path(given[0]),
        options=said["evaluation"].build(),
        step=said["step"],
        averaged=said["averaged"],
    )


if __name__ == "__main__":
    main(sys.argv[1:])
