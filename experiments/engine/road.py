"""The road of a batch: data, source, coupling, then times, path and objective."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.data import Dataset
from experiments.engine.model import Model, with_guidance
from experiments.engine.teachers import Teacher
from experiments.language.sentence import Use, label
from experiments.methods.base import Batch, Functions, bind, draw_key
from flowjax import couplings, guidance
from flowjax.data import BatchIterator
from flowjax.interpolants import Path
from flowjax.training import LossFunction, TrainState
from flowjax.typing import Pairs, PerExample, PRNGKey, VelocityField


def on_host(coupling: Use) -> bool:
    """Say whether a coupling runs on the host: its first argument is NumPy's generator.

    All others run on the devices, inside the step.
    """
    signature = inspect.signature(coupling.thing, eval_str=True)
    first = next(iter(signature.parameters.values()))
    return first.annotation is np.random.Generator


class HostPairs:
    """Batches that are coupled on the host, over the rows of all processes.

    Every process couples the whole batch and keeps its own rows, so that the pairs
    depend neither on the processes nor on the devices.
    """

    def __init__(self, model: Model, data: Dataset, *, batch_size: int, seed: int):
        """Open the data; arguments as of `Dataset.batches`."""
        self._model, self._data, self._seed, self._number = model, data, seed, 0
        self._coupling = model.experiment.coupling.build()
        self._whole = data.batches(
            batch_size=batch_size, seed=seed, process_index=0, process_count=1
        )
        share, rest = divmod(batch_size, jax.process_count())
        if rest:
            raise ValueError(
                "training.batch_size must be a multiple of the number of processes="
                f"{jax.process_count()}; got {batch_size}"
            )
        first = jax.process_index() * share
        self._rows = slice(first, first + share)

    def __iter__(self) -> "HostPairs":
        """Return the iterator itself."""
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """Return the next pairs of this process."""
        batch = next(self._whole)
        key = jax.random.fold_in(jax.random.key(self._seed), self._number)
        key_data, key_source = jax.random.split(key)
        x1, cond = jax.tree.map(np.asarray, self._data.read(key_data, batch))
        x0 = np.asarray(self._model.noise(key_source, len(x1)), x1.dtype)
        rng = np.random.default_rng([self._seed, self._number])
        pairs = self._coupling(rng, x0, x1, cond)
        self._number += 1
        named = self._model.example.conditions.split(pairs.cond)
        named |= {"x0": pairs.x0, "x1": pairs.x1}
        return {name: np.asarray(rows)[self._rows] for name, rows in named.items()}

    def get_state(self) -> dict[str, Any]:
        """Return where the iterator stands."""
        return {"number": self._number, "data": self._whole.get_state()}

    def set_state(self, state: dict[str, Any], /) -> None:
        """Go to a place that `get_state` has returned."""
        self._number = state["number"]
        self._whole.set_state(state["data"])


def open_batches(model: Model, data: Dataset, teacher: Teacher | None) -> BatchIterator:
    """Open the training data: the set, coupled on the host or not, or pairs taught.

    Raises:
        ValueError: if the teacher's examples have another shape than the data's, or a
            coupling is chosen for pairs that a teacher has made.
        FileNotFoundError: if the data are not where they should be.
    """
    training, coupling = model.experiment.training, model.experiment.coupling
    if model.method.from_pairs and coupling.thing is not couplings.independent:
        raise ValueError(
            f"{label(model.experiment.method.thing)} learns from the pairs that a "
            f"teacher has made; --coupling {label(coupling.thing)} would part them"
        )
    options = {"batch_size": training["batch_size"], "seed": training["seed"]}
    if on_host(coupling):
        return HostPairs(model, data, **options)
    if model.method.from_pairs:
        assert teacher is not None
        return teacher.batches(model.example.event, **options)
    return data.batches(**options)


def make_prepare(model: Model) -> Any:
    """Return ``(key, batch) -> Pairs``: the road from data to coupled pairs.

    It runs inside the step, over the whole batch, whatever the batch is then split
    into. Under pmap the whole batch is that of a device.
    """
    data = model.experiment.data.build()
    coupling = model.experiment.coupling.build()

    def prepare(key: PRNGKey, batch: Any) -> Pairs:
        key_data, key_source, key_drop, key_rest = jax.random.split(key, 4)
        if "x1" in batch:  # paired before: by a teacher, or on the host
            x0, x1 = batch["x0"], batch["x1"]
            cond = model.example.conditions.join(batch)
        else:
            x1, cond = data.read(key_data, batch)
            x0 = model.noise(key_source, len(x1)).astype(x1.dtype)
        if cond is not None:
            cond = data.drop(key_drop, cond)
        if "x0" in batch:
            return Pairs(x0, x1, cond)
        return coupling(draw_key(key_rest, "coupling"), x0, x1, cond)

    return prepare


def try_once(model: Model, batches: BatchIterator, teacher: Teacher | None) -> None:
    """Trace the road of one batch, so that what does not fit shows before any work.

    The batches stand where they stood.

    Raises:
        ValueError: if an option is out of range or shapes do not fit.
    """
    place = batches.get_state()
    batch = next(batches)
    batches.set_state(place)
    params = None if teacher is None else teacher.params
    loss, prepare = make_loss(model, teacher, params), make_prepare(model)

    def trace(key: PRNGKey, batch: Any) -> Any:
        state = model.init(key)
        return loss(state.params, key, prepare(key, batch), state)

    jax.eval_shape(trace, jax.random.key(0), batch)


def make_loss(model: Model, teacher: Teacher | None, params: Any) -> LossFunction:
    """Return the road from pairs to the loss: times, path, objective.

    Args:
        model: what is trained.
        teacher: whom it learns from, or None.
        params: the teacher's parameters.
    """
    method, modules = model.method, model.modules
    targets = method.target_modules(modules)
    voice = None if teacher is None else _teach(model, teacher, params)

    def loss(
        params: Any, key: PRNGKey, pairs: Any, state: TrainState, /
    ) -> tuple[PerExample, dict[str, Array]]:
        key_member = jax.random.split(key, 4)[3]
        frozen = state.ema_params if method.averaged_targets() else params
        now = bind(method, modules, params)
        pairs, aim = _with_guidance(model, now, pairs, key_member)
        return method.loss(
            Batch(
                key=key_member,
                pairs=pairs,
                path=model.path,
                now=now,
                target=bind(method, targets, jax.lax.stop_gradient(frozen)),
                still=bind(method, modules, jax.lax.stop_gradient(params)),
                aim=aim,
                teacher=voice,
                step=state.step,
                steps=model.experiment.training["steps"],
            )
        )

    return loss


def _teach(model: Model, teacher: Teacher, params: Any) -> VelocityField:
    if not model.sees_guidance:
        return teacher.velocity(params, 1.0)

    def told(x: Array, t: Array, cond: Any = None, /) -> Array:
        low, high = cond["interval"].T
        scale = jnp.where((low <= t) & (t <= high), cond["scale"], 1.0)
        own = model.example.conditions.pick(cond)
        return teacher.velocity(params, scale)(x, t, own)

    return told


def _with_guidance(
    model: Model, now: Functions, pairs: Pairs, key: PRNGKey
) -> tuple[Pairs, Callable[[Path], Path]]:
    """Return the pairs, and what gives points of the path their guided velocity."""
    null = model.example.conditions.null
    rule = getattr(model.method, "guidance", None)
    if not model.sees_guidance and rule is None:
        return pairs, _unguided
    model.need_unconditional()
    if rule is not None and not model.sees_guidance:

        def aim(path: Path) -> Path:
            return path._replace(v=rule.build(u=now.u, path=path, null=null))

        return pairs, aim
    if rule is not None:
        raise ValueError(
            "a network that is told the guidance learns every scale: leave out "
            "--guidance, or --network.guidance"
        )
    scale, (low, high) = guidance.draw_guidance(
        draw_key(key, "guidance"), len(pairs.x1)
    )
    # A row without its condition is the unconditional field: not guided either.
    dropped = guidance.is_null(pairs.cond, null=null)
    scale = jnp.where(dropped, 1.0, scale)
    low, high = jnp.where(dropped, 0.0, low), jnp.where(dropped, 1.0, high)
    told = pairs._replace(
        cond=with_guidance(pairs.cond, scale, jnp.stack([low, high], 1))
    )
    null = with_guidance(null, jnp.float32(1.0), jnp.array([[0.0, 1.0]]))

    def aim_as_told(path: Path) -> Path:
        row = path.cond
        velocity = guidance.guided_velocity(
            now.u,
            path,
            null=null,
            omega=1.0,
            kappa=1 - 1 / row["scale"],
            interval=(row["interval"][:, 0], row["interval"][:, 1]),
        )
        return path._replace(v=velocity)

    return told, aim_as_told


def _unguided(path: Path) -> Path:
    return path
