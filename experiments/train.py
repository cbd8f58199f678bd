"""Train one experiment, then evaluate it.

    python -m experiments.train                                # digits, about 3 minutes
    python -m experiments.train density_mean_flow --density spirals
    python -m experiments.train digits_mean_flow --method alpha_flow --path polynomial \
        --path.power 2 --training.steps 5000 --run runs/long
    python -m experiments.train digits_mean_flow --method alpha_flow --help
    python -m experiments.train --list

The same command again continues a run that was interrupted, bit for bit; a finished run
is only evaluated again.
"""

import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax

from experiments import configs
from experiments.engine.evaluation import evaluate
from experiments.engine.experiment import TABLES, Experiment, choose, smoke
from experiments.engine.loop import train
from experiments.language import command
from experiments.language.sentence import Use


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(Experiment):
    """An experiment, where it goes and how it starts.

    Attributes:
        run: run folder, new or to be continued; None: runs/NAME.
        smoke: run a tiny version, to see in seconds that everything works.
        distributed: join the other processes of a cluster: one process per host, the
            same command in each.
    """

    run: str | None = None
    smoke: bool = False
    distributed: bool = False


def main(arguments: Sequence[str]) -> None:
    """Parse ``[NAME] [--joint NAME] [--joint.option VALUE] …``, train and evaluate."""
    named = bool(arguments) and not arguments[0].startswith("-")
    name = arguments[0] if named else configs.DEFAULT
    try:
        if "--list" in arguments:
            print(configs.listing())
            return
        experiment = configs.get(name)
        if "--smoke" in arguments:  # before all else: what is said wins
            experiment = smoke(experiment)
        if named is False and (late := set(arguments) & set(configs.names())):
            raise ValueError(f"the experiment comes first: train {min(late)} …")
        said = command.parse(
            Use(Command, vars(experiment)),
            TABLES,
            arguments[1:] if named else arguments,
            program=f"python -m experiments.train {name}",
            description=f"{configs.summary(name)} Others: --list.",
            choose=partial(choose, teacher=configs.teacher_of(name)),
        )
        parts = {field.name for field in dataclasses.fields(Experiment)}
        experiment = Experiment(**{part: said[part] for part in parts})
        run = Path(said["run"] or f"runs/{name}{'_smoke' if said['smoke'] else ''}")
        if said["distributed"]:
            jax.distributed.initialize()
        train(experiment, run)
        if jax.process_count() == 1:
            evaluate(run)
        elif jax.process_index() == 0:
            print(f"trained; now on one host: python -m experiments.evaluate {run}")
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main(sys.argv[1:])
