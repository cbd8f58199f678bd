"""Train one experiment, then evaluate it.

    python -m experiments.train                                # digits, about 3 minutes
    python -m experiments.train density_mean_flow --density spirals
    python -m experiments.train digits_mean_flow --method alpha_flow --path polynomial \
        --path.power 2 --training.steps 5000 --run runs/long
    python -m experiments.train digits_mean_flow --method alpha_flow --help
    python -m experiments.train --list

The same command again continues a run that was interrupted, bit for bit; a finished run
is only evaluated again. SIGINT (ctrl-C) and SIGTERM save and leave with exit code 75.
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
from experiments.engine.processes import join
from experiments.engine.stopping import Stop
from experiments.entry import entry_point
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
        coordinator: HOST:PORT of the first process, where no cluster is detected.
        process_count: number of processes, where no cluster is detected.
        process_index: number of this process, from 0, where no cluster is detected.
    """

    run: str | None = None
    smoke: bool = False
    distributed: bool = False
    coordinator: str | None = None
    process_count: int | None = None
    process_index: int | None = None


@entry_point
def main(arguments: Sequence[str]) -> None:
    """Parse ``[NAME] [--joint NAME] [--joint.option VALUE] …``, train and evaluate."""
    if "--list" in arguments:
        print(configs.listing())
        return
    named = bool(arguments) and not arguments[0].startswith("-")
    name = arguments[0] if named else configs.DEFAULT
    said = _parse(name, arguments[1:] if named else arguments, named=named)
    parts = {field.name for field in dataclasses.fields(Experiment)}
    experiment = Experiment(**{part: said[part] for part in parts})
    run = Path(said["run"] or f"runs/{name}{'_smoke' if said['smoke'] else ''}")
    # First of all, and before the signals are ours: it takes SIGTERM.
    join(
        said["coordinator"],
        said["process_count"],
        said["process_index"],
        distributed=said["distributed"],
    )
    with Stop() as stop:
        train(experiment, run, stop=stop)
        if jax.process_count() == 1:
            evaluate(run)
        elif jax.process_index() == 0:
            print(f"trained; now on one host: python -m experiments.evaluate {run}")


def _parse(name: str, arguments: Sequence[str], *, named: bool) -> Use:
    experiment = configs.get(name)
    if "--smoke" in arguments:  # before all else: what is said wins
        experiment = smoke(experiment)
    if not named and (late := set(arguments) & set(configs.names())):
        raise ValueError(f"the experiment comes first: train {min(late)} …")
    return command.parse(
        Use(Command, vars(experiment)),
        TABLES,
        arguments,
        program=f"python -m experiments.train {name}",
        description=f"{configs.summary(name)} Others: --list.",
        choose=partial(choose, teacher=configs.teacher_of(name)),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
