"""Measure the samples of a run against held-out data, each beside real data.

    python -m experiments.evaluate runs/digits_mean_flow

Writes evaluation.json, evaluation.md, samples.png and loss.png into the run folder. The
row "real" is training data measured like samples, what a perfect model would get; its
agreement is the classifier's accuracy on the held-out data.
"""

from pathlib import Path

import tyro

from experiments.engine.evaluation import evaluate
from experiments.entry import entry_point


@entry_point
def main(run: tyro.conf.Positional[Path]) -> None:
    """Evaluate a run.

    Args:
        run: the run folder.
    """
    evaluate(run)


if __name__ == "__main__":
    tyro.cli(main)
