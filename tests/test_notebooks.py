"""The notebooks: what is committed shows its pictures, and every cell still runs."""

import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EVERY = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

MAX_BYTES = 1_500_000
MIN_PICTURES = 6
TIMEOUT = 900
# A path that only one machine has: a home, a temporary or a mounted folder, a drive.
ABSOLUTE = re.compile(
    r"(?<![\w/.:])/(?:home|root|tmp|usr|var|opt|mnt|work|content|Users)/|\b[A-Z]:\\\\"
)


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def pictures(cell):
    return sum("image/png" in output.get("data", {}) for output in cell["outputs"])


def text_of(cell):
    """Return everything in a cell that can be read, and not the pictures."""
    parts = [cell["source"]]
    for output in cell.get("outputs", []):
        parts.append(output.get("text", ""))
        data = output.get("data", {})
        parts += [data[kind] for kind in data if kind.startswith("text/")]
    return "".join("".join(part) for part in parts)


def test_there_are_notebooks():
    assert NOTEBOOKS


@EVERY
def test_committed_outputs(path):
    assert path.stat().st_size < MAX_BYTES
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    cells = code_cells(notebook)
    # One run of the whole notebook, from top to bottom, in a fresh kernel.
    counts = [cell["execution_count"] for cell in cells]
    assert counts == list(range(1, len(cells) + 1))
    assert sum(map(pictures, cells)) >= MIN_PICTURES
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    for cell in notebook["cells"]:
        found = ABSOLUTE.search(text_of(cell))
        assert not found, f"a path of one machine: {found}"


@pytest.mark.parametrize("text", ["/home/me/x", "open('/tmp/a')", r"C:\\x"])
def test_absolute_paths_are_seen(text):
    assert ABSOLUTE.search(text)


@pytest.mark.parametrize("text", ["https://arxiv.org/abs/2", "$v / 6$", "runs/tmp/a"])
def test_other_slashes_are_not_paths(text):
    assert not ABSOLUTE.search(text)


@pytest.fixture
def fresh_environment(monkeypatch):
    """Hand the kernel the package, and none of the settings of these tests."""
    inherited = os.environ.get("PYTHONPATH")
    search = [str(ROOT), *([inherited] if inherited else [])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(search))
    # Eight devices, and programs that are compiled fast rather than to be fast.
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    # conftest's Agg would silence the kernel's inline pictures.
    monkeypatch.delenv("MPLBACKEND", raising=False)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_environment")
@EVERY
def test_runs_from_top_to_bottom(path, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    committed = nbformat.read(path, as_version=4)
    notebook = nbformat.read(path, as_version=4)
    for cell in code_cells(notebook):
        cell.update(outputs=[], execution_count=None)
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()  # raises CellExecutionError with the traceback of the cell

    pairs = zip(code_cells(committed), code_cells(notebook), strict=True)
    for number, (before, after) in enumerate(pairs, start=1):
        assert all(o["output_type"] != "error" for o in after["outputs"]), number
        assert pictures(after) == pictures(before), f"pictures of code cell {number}"
