"""The house: what imports what, and what the core must not load."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "flowjax"
HEAVY = {
    *("flax", "optax", "orbax", "tensorflow_datasets", "grain", "matplotlib"),
    *("tensorflow", "sklearn", "tyro", "tqdm"),
    *("scipy.optimize", "scipy.spatial", "scipy.special"),
}
# Each room may import those of the rows above it, and its own.
LEVELS = [
    {"typing", "contracts", "checks", "dtypes", "extras", "row_groups", "events"},
    {"interpolants", "times", "couplings", "sources"},
    {"fields", "analytic"},
    {"guidance", "policies", "weights"},
    {"objectives", "sampling", "metrics"},
    {"likelihood"},
    {"networks", "training", "data"},
]
# Names that several files share, because they mean the same thing in all of them.
SHARED = {
    "flow_map": "of an average velocity (fields), of a mixture (analytic), residuals",
    "log_density": "of a mixture in closed form (analytic), of a model by its flow",
}


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path):
    """The rooms of flowjax that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] in ("experiments", "tests", "benchmarks"):
                yield parts[0]
            if parts[0] == "flowjax" and len(parts) > 1:
                yield parts[1]


def test_imports_point_downwards_only():
    level = {room: i for i, rooms in enumerate(LEVELS) for room in rooms}
    files = [p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py"]
    assert {room_of(p) for p in files} == level.keys()
    wrong = [
        f"{path.relative_to(ROOT)} imports {other}"
        for path in files
        for other in imported_rooms(path)
        if other != room_of(path)
        and (other not in level or level[other] > level[room_of(path)])
    ]
    assert not wrong, wrong


def public_names():
    """Yield every file, room, public function and public class, and where it is."""
    for path in PACKAGE.rglob("*.py"):
        if path.name != "__init__.py":
            yield path.stem.lstrip("_"), path
        elif path.parent != PACKAGE:
            yield path.parent.name, path.parent
        for node in ast.parse(path.read_text()).body:
            defines = isinstance(node, ast.FunctionDef | ast.ClassDef)
            if defines and not node.name.startswith("_"):
                yield node.name, path


def test_no_name_has_two_meanings():
    places = {}
    for name, path in public_names():
        places.setdefault(name, set()).add(str(path.relative_to(PACKAGE)))
    # A file may be called as the function that it is about: that is one place.
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert twice.keys() == SHARED.keys(), twice


@pytest.mark.parametrize("module", ["flowjax", "flowjax.data"])
def test_the_core_loads_nothing_heavy(module):
    script = f"import sys, {module}; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True
    )
    assert output.returncode == 0, output.stderr
    assert not HEAVY & set(output.stdout.split())


@pytest.mark.parametrize(
    ("module", "missing"), [("networks", "flax"), ("training", "optax")]
)
def test_a_missing_extra_is_named(module, missing):
    script = f"import sys; sys.modules[{missing!r}] = None; import flowjax.{module}"
    output = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True
    )
    assert re.search(rf"pip install .*'{missing}>=[0-9.]+'", output.stderr)


def test_the_version_is_the_same_everywhere():
    import flowjax

    for name, pattern in (
        ("setup.cfg", r"^version = (.*)$"),
        ("CITATION.cff", r"^version: (.*)$"),
        ("CHANGELOG.md", r"^## ([0-9.]+)"),
    ):
        found = re.search(pattern, (ROOT / name).read_text(), re.MULTILINE)
        assert found is not None, name
        assert found[1] == flowjax.__version__, name


def test_the_example_of_the_readme_runs():
    text = (ROOT / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert 10 <= len(example.strip().splitlines()) <= 25
    exec(compile(example, "README.md", "exec"), {})
