"""Checkpoints of a run: state, position in the data, configuration.

One folder per run, one subfolder per saved step. Orbax writes it asynchronously under
a temporary name and renames it when it is complete, so a process killed in the middle
leaves nothing that passes for a checkpoint. Against files that are damaged later, the
checksums of every array and of the record beside them are stored and compared when they
are read. A state that is not finite is no checkpoint either.
"""

import contextlib
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from flowjax.training import checkpoint_record
from flowjax.training.checkpoint_record import Resumable
from flowjax.training.state import TrainState


class Checkpointer:
    """Saves and restores a run in one folder.

    A context manager; leaving it waits until everything is written.

        with Checkpointer(folder, config=config) as checkpointer:
            restored = checkpointer.restore(executor.gather(state), data)
            ...
            checkpointer.save(step, executor.gather(state), data)
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep: int = 3,
        config: Mapping[str, Any] | None = None,
        may_differ: Collection[str] = (),
        read_only: bool = False,
    ):
        """Open or create the folder of a run.

        Args:
            directory: the folder; all processes must see the same one.
            keep: how many of the newest checkpoints stay.
            config: what defines the run, of any nesting that JSON can represent. It is
                stored with every checkpoint and must be the same when restoring. None
                stores nothing and accepts every stored configuration.
            may_differ: names of entries of ``config`` that may change between saving
                and restoring, such as the number of steps; ``"a.b"`` is the entry b of
                a, and ``"a"`` all of a.
            read_only: leave the folder as it is, for reading next to a running
                training. Otherwise what an interrupted save left behind is removed.

        Raises:
            ValueError: if ``keep`` is not positive or JSON can't represent ``config``.
            FileNotFoundError: if ``read_only`` and there is no such folder.
        """
        if keep < 1:
            raise ValueError(f"`keep` must be at least 1; got {keep}")
        self._directory = Path(directory).absolute()
        if read_only and not self._directory.is_dir():
            raise FileNotFoundError(f"there is no folder {self._directory}")
        self._config = None if config is None else checkpoint_record.as_json(config)
        self._may_differ = tuple(may_differ)
        self._read_only = read_only
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.LatestN(keep),
                create=not read_only,
                cleanup_tmp_directories=not read_only,
            ),
        )

    def save(
        self, step: int, state: TrainState, data_iterator: Resumable | None = None
    ) -> None:
        """Start saving; return as soon as ``state`` may be donated to the next step.

        Args:
            step: the number of the checkpoint, larger than all in the folder.
            state: on one device or in the layout of `Executor.gather`.
            data_iterator: its position is saved; every process gives its own.

        Raises:
            ValueError: if the folder is read-only, holds this or a later step, or an
                array of the state has no elements.
            FloatingPointError: if a number of the state is not finite.
            OSError: if this or the save before could not be written.
        """
        if self._read_only:
            raise ValueError(f"{self._directory} was opened with read_only=True")
        latest = self._manager.latest_step()
        if latest is not None and latest >= step:
            raise ValueError(
                f"{self._directory} already holds step {latest}, can't save step "
                f"{step}: restore the run first or choose another folder"
            )
        checkpoint_record.check_storable(state)
        found = checkpoint_record.survey(state)
        if found.broken:
            raise FloatingPointError(
                f"the state after step {step} is not finite, and is not saved: "
                + _listed(found.broken)
            )
        record = {
            "config": self._config,
            "leaves": checkpoint_record.describe(state),
            "checksums": found.checksums,
            "cursors": checkpoint_record.cursors(data_iterator),
        }
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            record=ocp.args.JsonSave(checkpoint_record.seal(record)),
        )
        with self._writing():
            self._manager.save(step, args=arguments, force=True)

    def restore(
        self,
        template: TrainState,
        data_iterator: Resumable | None = None,
        *,
        step: int | None = None,
    ) -> tuple[TrainState, int] | None:
        """Return the newest intact state and its step, or None from an empty folder.

        A checkpoint that can't be read, does not have the stored checksums or is not
        finite is passed over with a warning. Once an older one is found, the damaged
        ones are renamed to ``damaged-<step>`` (unless read-only), which makes room for
        saving these steps again.

        Args:
            template: a state whose structure, shapes, dtypes and shardings are those
                to restore, such as ``executor.gather(executor.init(key))``, or a
                `jax.ShapeDtypeStruct` in the place of each array. Not modified.
            data_iterator: moved to the saved position.
            step: take this checkpoint and no other; the folder is left as it is.

        Raises:
            ValueError: if there is no checkpoint of that step, the stored configuration
                differs from this one, the stored
                arrays don't have the names, shapes or dtypes of the template, there
                is no position for ``data_iterator``, or the checkpoints are of an
                earlier version of this code.
            OSError: if there are checkpoints and all of them are damaged.
        """
        self.wait()
        damaged: dict[int, Exception] = {}
        for found in self._candidates(step):
            # The two kinds of trouble must not be confused: damage leads to an older
            # checkpoint, a checkpoint of another run or network to an error.
            try:
                record = self._read_record(found)
            except checkpoint_record.Outdated as error:
                raise ValueError(f"{self._directory}: {error}") from error
            except Exception as error:
                self._pass_over(found, error, damaged)
                continue
            self._check_run(record, template)
            cursor = checkpoint_record.own_cursor(record["cursors"], data_iterator)
            try:
                state = self._read_state(found, template, record["checksums"])
            except Exception as error:
                self._pass_over(found, error, damaged)
                continue
            self._set_aside(damaged)
            if data_iterator is not None:
                data_iterator.set_state(cursor)
            return state, found
        if damaged:
            raise OSError(
                f"all checkpoints in {self._directory} are damaged: "
                + "; ".join(f"step {n}: {_headline(e)}" for n, e in damaged.items())
            ) from next(iter(damaged.values()))
        return None

    def _candidates(self, step: int | None) -> list[int]:
        """Return the steps to look at, the newest first."""
        steps = sorted(self._manager.all_steps(), reverse=True)
        if step is None:
            return steps
        if step not in steps:
            raise ValueError(
                f"{self._directory} must hold a checkpoint of step {step}; it holds "
                f"{', '.join(map(str, reversed(steps))) or 'none'}"
            )
        return [step]

    def stored_config(self) -> dict[str, Any] | None:
        """Return the configuration of the newest readable checkpoint, None without."""
        self.wait()
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self._read_record(step)["config"]
            except Exception as error:
                self._pass_over(step, error, {})
        return None

    def wait(self) -> None:
        """Return when everything is written.

        Raises:
            OSError: if it could not be.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, then release the threads that write; errors as of `wait`."""
        with self._writing():
            self._manager.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # What went wrong first is what is worth knowing.
        with contextlib.suppress(*([] if error is None else [OSError])):
            self.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Say in a line what orbax and TensorStore say in hundreds."""
        try:
            yield
        except Exception as error:
            raise OSError(
                f"{self._directory} can't be written: {_headline(error)}"
            ) from error

    def _read_record(self, step: int) -> dict[str, Any]:
        restored = self._manager.restore(
            step, args=ocp.args.Composite(record=ocp.args.JsonRestore())
        )
        return checkpoint_record.unseal(restored["record"])

    def _read_state(
        self, step: int, template: TrainState, checksums: Mapping[str, int]
    ) -> TrainState:
        state = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(template))
        )["state"]
        # Orbax's own metadata has no checksum: it says which leaf is a typed key.
        if differ := checkpoint_record.leaf_differences(
            checkpoint_record.describe(template), state
        ):
            raise RuntimeError(f"it was read as something else: {'; '.join(differ)}")
        read, broken = checkpoint_record.survey(state)
        if wrong := [name for name in read if read[name] != checksums.get(name)]:
            raise RuntimeError(f"checksums differ for {', '.join(wrong)}")
        if broken:
            raise FloatingPointError(f"it is not finite: {_listed(broken)}")
        return state

    def _check_run(self, record: Mapping[str, Any], template: TrainState) -> None:
        """Raise ValueError if the checkpoint is of another run or another network."""
        differ = []
        if self._config is not None:
            differ = checkpoint_record.config_differences(
                record["config"], self._config, self._may_differ
            )
        if differ:
            raise ValueError(
                f"{self._directory} belongs to a run with another configuration "
                "(stored -> given): " + "; ".join(differ)
            )
        if differ := checkpoint_record.leaf_differences(record["leaves"], template):
            raise ValueError(
                f"the state stored in {self._directory} does not fit the template "
                "(stored -> template): " + "; ".join(differ)
            )

    def _pass_over(
        self, step: int, error: Exception, damaged: dict[int, Exception]
    ) -> None:
        damaged[step] = error
        warnings.warn(
            f"step {step} in {self._directory} is damaged and passed over: "
            + _headline(error),
            RuntimeWarning,
            stacklevel=3,
        )

    def _set_aside(self, damaged: Collection[int]) -> None:
        """Rename damaged checkpoints: they would block saving and count as newest."""
        if self._read_only or not damaged:
            return
        if jax.process_index() == 0:
            for step in damaged:
                self._rename(step)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints set aside")
        self._manager.reload()

    def _rename(self, step: int) -> None:
        names = (f"damaged-{step}" + "+" * i for i in range(1000))
        target = next(n for n in names if not (self._directory / n).exists())
        (self._directory / str(step)).rename(self._directory / target)


def _listed(names: list[str]) -> str:
    """Return the first names: in a network that diverges it is all of them."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _headline(error: Exception) -> str:
    """Return the first line: TensorStore appends the whole specification of a store.

    What happened stands at its beginning, and why at its end.
    """
    first = (str(error).splitlines() or [""])[0].partition(" [tensorstore_spec")[0]
    if len(first) > 300:
        first = f"{first[:140]} … {first[-140:]}"
    return f"{type(error).__name__}: {first}"
