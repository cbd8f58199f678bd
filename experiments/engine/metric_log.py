"""The metrics of a run: a file of JSON lines, and other places that are asked for."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.engine.files import write_atomically
from flowjax.extras import require


class Opening(NamedTuple):
    """What a place for metrics is told when it is opened.

    Attributes:
        folder: the run folder.
        name: identifier of the run, unlike that of any other.
        config: what defines the run.
        first_step: the step that the run continues from.
    """

    folder: Path
    name: str
    config: Mapping[str, Any]
    first_step: int


Writer = Callable[[int, Mapping[str, float]], None]


def _tensorboard(opening: Opening) -> Writer:
    module = require("tensorboardX", extra="log")
    # What a process that died had written after its last checkpoint comes again.
    summary = module.SummaryWriter(
        str(opening.folder / "tensorboard"), purge_step=opening.first_step + 1
    )

    def write(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            summary.add_scalar(name, value, step)
        summary.flush()

    return write


def _wandb(opening: Opening) -> Writer:
    module = require("wandb", extra="log")
    module.init(
        dir=str(opening.folder),
        name=opening.folder.name,
        id=opening.name,
        config=dict(opening.config),
        resume="allow",
    )
    return lambda step, metrics: module.log(dict(metrics), step=step)


WRITERS: dict[str, Callable[[Opening], Writer]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}
"""Where metrics can go besides the file, by name."""


class MetricLog:
    """Appends JSON lines to a file; a continued run drops the lines it repeats."""

    def __init__(self, opening: Opening, *, log_to: Sequence[str] = ()) -> None:
        """Open the log and forget the lines after the step that is continued from.

        They were written by a process that died before its next checkpoint. Lines that
        can't be read are forgotten too, with a warning.

        Args:
            opening: the run.
            log_to: names of `WRITERS` to write to as well.

        Raises:
            ImportError: if a writer's package is not installed.
        """
        self._writers = [WRITERS[name](opening) for name in log_to]
        self._path = opening.folder / "metrics.jsonl"
        if self._path.is_file():
            rows = read_metrics(self._path)
            kept = [row for row in rows if row["step"] <= opening.first_step]
            text = "".join(json.dumps(row) + "\n" for row in kept)
            if text.encode() != self._path.read_bytes():
                write_atomically(self._path, text)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line; it is on disk when this returns."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        for writer in self._writers:
            writer(step, metrics)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the rows of a metrics file, without the lines that are damaged.

    A warning names each of these, except a last one that was cut off: its process was
    killed while it wrote. Without a file there are no rows.
    """
    return list(_rows(path)) if path.is_file() else []


def _rows(path: Path) -> Iterator[dict[str, float]]:
    *lines, last = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            yield _row(line)
        except (ValueError, RecursionError) as error:
            warnings.warn(
                f"line {number} of {path} is damaged and left out: {error}",
                RuntimeWarning,
                stacklevel=3,
            )
    try:
        yield _row(last)
    except (ValueError, RecursionError):
        return


def _row(line: bytes) -> dict[str, float]:
    row = json.loads(line)
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise ValueError("it is no object with a step")
    for name, value in row.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"its {name} is no number")
    return row
