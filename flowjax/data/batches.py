"""Endless, shuffled, resumable batches for one process of possibly many.

Both iterators here are grain iterators: ``get_state`` returns where they stand,
``set_state`` goes there, and orbax saves them through grain's checkpoint handler. A
batch is a function of its number alone. The rows of all processes, put together in the
order of the processes, are the batch that a single process would have got.
"""

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from flowjax.data.image_sets import ImageSource
from flowjax.data.rows import ArrayRows, RowSource
from flowjax.extras import require


@runtime_checkable
class BatchIterator(Protocol):
    """An endless iterator over dicts of arrays whose place can be saved."""

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Return the iterator itself."""
        ...

    def __next__(self) -> dict[str, np.ndarray]:
        """Return the next batch."""
        ...

    def get_state(self) -> dict[str, Any]:
        """Return where the iterator stands, as JSON-serialisable values."""
        ...

    def set_state(self, state: dict[str, Any], /) -> None:
        """Go to a place that `get_state` has returned."""
        ...


def image_batches(
    source: ImageSource,
    *,
    batch_size: int,
    seed: int,
    flip: bool = False,
    process_index: int | None = None,
    process_count: int | None = None,
    num_threads: int = 0,
) -> BatchIterator:
    """Iterate for ever over shuffled images in [-1, 1] and their labels.

    Every epoch is a fresh permutation of the records, and epochs follow each other
    without a gap: a batch may hold the end of one and the start of the next, no record
    is dropped or repeated inside an epoch.

    Args:
        source: the images, from `load_source`.
        batch_size: number of rows over all processes.
        seed: determines the permutations and the flips; non-negative.
        flip: whether to mirror each image left to right with probability 1/2, drawn
            anew in every epoch.
        process_index: which rows to take; by default ``jax.process_index()``.
        process_count: number of processes; by default ``jax.process_count()``.
        num_threads: batches read ahead at a time. 0 reads in the caller's thread, which
            is best for a source in memory; from disk, 4 to 16.

    Returns:
        A grain iterator over ``{"image": float32 [b, h, w, c], "label": int32 [b]}``
        with ``b = batch_size / process_count``.

    Raises:
        ImportError: without the extra `data`.
        ValueError: if the source is empty, the sizes do not fit together or ``seed`` is
            negative.
    """
    if len(source) == 0:
        raise ValueError("`source` must hold at least one record; got none")
    if seed < 0:
        raise ValueError(f"`seed` must not be negative; got {seed}")

    def load(positions: np.ndarray) -> dict[str, np.ndarray]:
        rows, mirrored = _draw(positions, seed, len(source))
        images, labels = source.gather(rows.tolist())
        if flip:
            images[mirrored] = images[mirrored, :, ::-1]
        named = {"image": source.scale(images), "label": labels}
        return {name: array for name, array in named.items() if array is not None}

    return _iterate(load, batch_size, process_index, process_count, num_threads)


def row_batches(
    source: RowSource,
    *,
    batch_size: int,
    seed: int,
    process_index: int | None = None,
    process_count: int | None = None,
    num_threads: int = 0,
) -> BatchIterator:
    """Iterate for ever over shuffled rows of any source.

    Epochs are those of `image_batches`: fresh permutations that follow each other
    without a gap. For an object of one's own see `RecordRows`.

    Args:
        source: the rows.
        batch_size: number of rows over all processes.
        seed: determines the permutations; non-negative.
        process_index: as in `image_batches`.
        process_count: as in `image_batches`.
        num_threads: as in `image_batches`.

    Returns:
        A grain iterator over ``name -> [batch_size / process_count, ...]``.

    Raises:
        ImportError: without the extra `data`.
        ValueError: as `image_batches`.
    """
    if len(source) == 0:
        raise ValueError("`source` must hold at least one row; got none")
    if seed < 0:
        raise ValueError(f"`seed` must not be negative; got {seed}")

    def load(positions: np.ndarray) -> dict[str, np.ndarray]:
        return source.gather(_draw(positions, seed, len(source))[0].tolist())

    return _iterate(load, batch_size, process_index, process_count, num_threads)


def array_batches(
    arrays: Mapping[str, np.ndarray],
    *,
    batch_size: int,
    seed: int,
    process_index: int | None = None,
    process_count: int | None = None,
) -> BatchIterator:
    """Iterate for ever over shuffled rows of arrays: `row_batches` of `ArrayRows`.

    Raises:
        ImportError: without the extra `data`.
        ValueError: if the arrays are empty or differ in length, or as `row_batches`.
    """
    return row_batches(
        ArrayRows(arrays),
        batch_size=batch_size,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
    )


def index_batches(
    *,
    batch_size: int,
    process_index: int | None = None,
    process_count: int | None = None,
) -> BatchIterator:
    """Iterate for ever over ``{"index": uint32 [b]}``, the running numbers of examples.

    The counterpart of `image_batches` for densities, which are drawn inside the
    training step: it keeps the count and gives the step its batch axis. The numbers
    wrap around at 2^32. Arguments and errors are those of `image_batches`.
    """

    def load(positions: np.ndarray) -> dict[str, np.ndarray]:
        return {"index": positions.astype(np.uint32)}

    return _iterate(load, batch_size, process_index, process_count, 0)


def _iterate(
    load: Callable[[np.ndarray], dict[str, np.ndarray]],
    batch_size: int,
    process_index: int | None,
    process_count: int | None,
    num_threads: int,
) -> BatchIterator:
    """Iterate over ``load(positions)``, with the positions of this process's rows."""
    grain = require("grain", extra="data")
    index = jax.process_index() if process_index is None else process_index
    count = jax.process_count() if process_count is None else process_count
    if not 0 <= index < count:
        raise ValueError(
            f"`process_index` must lie in 0..process_count-1={count - 1}; got {index}"
        )
    if batch_size < 1 or batch_size % count:
        raise ValueError(
            "`batch_size` must be a positive multiple of "
            f"`process_count`={count}; got {batch_size}"
        )
    if num_threads < 0:
        raise ValueError(f"`num_threads` must not be negative; got {num_threads}")
    rows = np.arange(batch_size // count)

    # Rows are chosen for a batch at once: grain's own shuffle and batch cost 20 us per
    # record, which would exceed the training step of a small network.
    def block(number: int) -> dict[str, np.ndarray]:
        return load(number * len(rows) + rows)

    # One block per process and batch, so that process i takes i, i + count, ….
    blocks = grain.MapDataset.range(sys.maxsize)[index::count].map(block)
    options = grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=2 * num_threads
    )
    return blocks.to_iter_dataset(options).__iter__()


def _draw(positions: np.ndarray, seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which record sits at each position of the stream, and whether mirrored."""
    epochs, offsets = np.divmod(positions, size)
    rows = np.empty(len(positions), np.int64)
    mirrored = np.empty(len(positions), bool)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        here = epochs == epoch
        order, coins = _epoch(seed, epoch, size)
        rows[here] = order[offsets[here]]
        mirrored[here] = coins[offsets[here]]
    return rows, mirrored


# Four: threads that read ahead may work on neighbouring epochs.
@functools.lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an epoch's permutation and its coin flips, each [size]."""
    rng = np.random.default_rng([seed, epoch])
    return rng.permutation(size), rng.random(size) < 0.5
