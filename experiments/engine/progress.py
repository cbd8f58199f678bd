"""What a training says while it works."""

import sys
from collections.abc import Mapping

import jax
from tqdm import tqdm

from experiments.engine.model import Model


class Progress:
    """A progress bar on a terminal, one status line per interval elsewhere."""

    def __init__(self, steps: int, *, shown: bool):
        """Say nothing yet.

        Args:
            steps: optimiser steps in all.
            shown: whether to say anything; of several processes the first does.
        """
        self._steps = steps
        self._shown = shown and jax.process_index() == 0
        self._bar: tqdm | None = None

    def say(self, text: str) -> None:
        """Say what is being done."""
        if self._shown and self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif self._shown:
            print(text, flush=True)

    def dispatched(self, step: int) -> None:
        """Note that a step was given to the devices; the first one is compiled."""
        if not self._shown or not sys.stderr.isatty():
            return
        if self._bar is None:
            self._bar = tqdm(
                total=self._steps, initial=step - 1, unit="step", smoothing=0.05
            )
        self._bar.update(step - self._bar.n)

    def logged(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the means of an interval."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {metrics['loss']:.4g}")
        elif self._shown:
            text = ", ".join(
                f"{name.replace('_', ' ')} {value:.4g}"
                for name, value in metrics.items()
            )
            print(f"step {step}/{self._steps}: {text}", flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def describe(model: Model) -> str:
    """Return in a line what is trained on what."""
    devices = jax.devices()
    kind = f"{len(devices)} x {devices[0].device_kind}"
    params = jax.eval_shape(model.init, jax.random.key(0)).params
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    shape = "x".join(map(str, model.example.event))
    conditions = model.example.conditions
    given = list(conditions.kinds)
    if conditions.num_classes is not None:
        given[0] = f"{conditions.num_classes} labels"
    size = model.experiment.data.build().number_of_examples()
    return (
        f"{kind}: {count:,} parameters, {'' if size is None else f'{size:,} '}"
        f"examples of {shape}"
        + (f" with {' and '.join(given)}" if given else "")
        + f", batches of {model.experiment.training['batch_size']}"
    )
