"""Data sets that lie in one file, some rows of which are held out."""

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

from experiments.data.base import Example, Rows
from experiments.data.images import split_rows
from flowjax.data import RowSource, SelectedRows


class Opened(NamedTuple):
    """A file that has been read.

    Attributes:
        rows: its rows.
        example: what they look like.
        fit: what a file of held-out rows is read by, if that is not in the example.
    """

    rows: RowSource
    example: Example
    fit: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileRows(Rows):
    """Rows of a file.

    Attributes:
        file: the file.
        test_file: a file of held-out rows, of the same kind; None: a share of the rows
            is held out.
        test_share: the share, if there is no such file.
    """

    file: str
    test_file: str | None = None
    test_share: float = 0.1

    may_differ: ClassVar = frozenset({"file", "test_file"})

    def open(self, file: str, like: Opened | None) -> Opened:
        """Read a file; one that is held out is scaled ``like`` the other.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is not what the options say.
        """
        raise NotImplementedError

    def example(self) -> Example:
        """Return what the rows look like."""
        return _open(self, self.file).example

    def rows(self, *, held_out: bool) -> RowSource:
        """Open the training or the held-out rows.

        Raises:
            ValueError: also if a file of held-out rows has others than the file.
        """
        whole = _open(self, self.file)
        if self.test_file is None:
            chosen = split_rows(len(whole.rows), self.test_share, held_out=held_out)
            return SelectedRows(whole.rows, chosen)
        if not held_out:
            return whole.rows
        other = _open(self, self.test_file)
        if other.example != whole.example:
            raise ValueError(
                f"{self.test_file} must hold rows like {self.file}: {whole.example}; "
                f"got {other.example}"
            )
        return other.rows


# Opening is asked for in several places, and reads the file.
@functools.lru_cache(maxsize=4)
def _open(data: FileRows, file: str) -> Opened:
    return data.open(file, None if file == data.file else _open(data, data.file))
