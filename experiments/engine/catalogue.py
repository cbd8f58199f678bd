"""What there is to choose from: the list on the terminal, and the page of methods.

    python -m experiments.train --list
    python -m experiments.catalogue        # writes the page anew

Both are read from the tables that the command line reads.
"""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.engine.experiment import TABLES
from experiments.language import grammar
from experiments.language.sentence import (
    REQUIRED,
    ROLES,
    Use,
    label,
    options_of,
    papers,
    summary,
)
from experiments.methods import METHODS
from experiments.methods.base import TEACHER
from flowjax import objectives

PAGE = Path(__file__).parents[1] / "methods" / "README.md"

_SKIPPED = ("sampler", "second", "training", "evaluation")
"""Roles whose table stands under another name, or has nothing to choose."""


def listing(experiments: Mapping[str, str], family: str) -> str:
    """Return every experiment and all that may stand at a joint, a line each.

    Args:
        experiments: name -> one line about it, of those that have a file.
        family: the names of those that are made for every method.
    """
    lines = ["Experiments: python -m experiments.train NAME", ""]
    lines += [_entry(name, about, []) for name, about in experiments.items()]
    lines += [_entry(family, "Every method below on the same data.", []), ""]
    for role, table in TABLES.items():
        if role in _SKIPPED:
            continue
        lines += [f"--{grammar.FLAGS.get(role, role)}: {ROLES[role]}", ""]
        lines += [
            _entry(n, summary(thing), papers(thing)) for n, thing in table.items()
        ]
        lines.append("")
    return "\n".join(lines)


def _entry(name: str, about: str, numbers: list[str]) -> str:
    cited = f" arXiv:{', '.join(numbers)}" if numbers else ""
    text = f"  {name:<28} {about}{cited}"
    return "\n".join(textwrap.wrap(text, 100, subsequent_indent=" " * 31))


def describe(value: Any) -> str:
    """Return a use as one would write it: ``logit_normal(mean=0.4)``."""
    if not isinstance(value, Use):
        return "none" if value is None else str(value)
    options = ", ".join(f"{k}={describe(v)}" for k, v in value.options.items())
    return f"{label(value.thing)}({options})" if options else label(value.thing)


def page() -> str:
    """Return the page of methods: paper, pieces and command of each."""
    rows = [
        "# Methods",
        "",
        "Made by `python -m experiments.catalogue` from the table of methods; a test "
        "keeps it true.",
        "",
        "What a method reads is a joint (`--penalty NAME`) or an option "
        "(`--method.NAME VALUE`), with the default given here; `--help` behind a "
        "command explains each. What it needs beyond that is set with it. Its "
        "equations are functions of `flowjax.objectives`. `digits_` may be `density_`.",
        "",
        "| method | paper | what | joints | options | needs | few steps | command |",
        "|---" * 8 + "|",
    ]
    return (
        "\n".join(rows + [_row(name, thing) for name, thing in METHODS.items()]) + "\n"
    )


def _row(name: str, thing: Any) -> str:
    method = Use(thing)
    joints = [
        f"`{node.flag}` {describe(node.value)}"
        for node in grammar.nodes(method)
        if len(node.place) == 1 and node.flag != "teacher"
    ]
    options = [
        f"`{name}` {describe(method[name])}"
        for name, option in options_of(thing).items()
        if option.kind is not None
    ]
    cited = ", ".join(f"[{n}](https://arxiv.org/abs/{n})" for n in papers(thing))
    cells = [
        f"`{name}`",
        cited,
        summary(thing).rstrip("."),
        ", ".join(f"`{name}`" for name in objectives_of(thing)),
        "; ".join(joints),
        "; ".join(options),
        "; ".join(_needs(method)),
        summary(thing.few_step).rstrip("."),
        f"`python -m experiments.train digits_{name}`",
    ]
    return "| " + " | ".join(cells) + " |"


def objectives_of(thing: Any) -> list[str]:
    """Return the functions of `flowjax.objectives` that a method's code names."""
    named = [
        name
        for base in thing.__mro__
        for member in vars(base).values()
        for name in getattr(getattr(member, "__code__", None), "co_names", ())
    ]
    known = {n for n in objectives.__all__ if callable(getattr(objectives, n))}
    return [name for name in dict.fromkeys(named) if name in known]


def _needs(method: Use) -> list[str]:
    """Return what a method needs of the rest of the experiment."""
    thing: Any = method.thing
    needs = []
    if "teacher" in method:
        kind = "pairs of a teacher" if thing.from_pairs else "a teacher"
        needs.append(kind if method["teacher"] is REQUIRED else "perhaps a teacher")
    for part, wanted in thing.recipe.items():
        if isinstance(wanted, Use):
            needs.append(f"`--{part} {describe(wanted)}`")
            continue
        for option, value in wanted.items():
            shown = "RUN" if value == TEACHER else value
            needs.append(f"`--{part}.{option} {shown}`")
    return needs
