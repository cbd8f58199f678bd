"""Sentences on the command line: `--joint NAME` chooses, `--joint.option VALUE` sets.

What can be said depends on what was chosen: the joints are read first, from the left,
and the options of what they name are then read by tyro.
"""

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import tyro

from experiments.language import grammar
from experiments.language.grammar import (
    NONE,
    Leaf,
    Node,
    Tables,
    assign,
    leaves,
    nodes,
    thing_of,
)
from experiments.language.sentence import REQUIRED, Use, label, options_of, summary

Choose = Callable[[Use, Node, Any], Use]
"""``(root, node, thing or None) -> root`` with another thing at a joint."""


def parse(
    root: Use,
    tables: Tables,
    arguments: Sequence[str],
    *,
    program: str,
    description: str,
    choose: Choose = grammar.choose,
) -> Use:
    """Return the sentence that the arguments make of ``root``.

    Args:
        root: the sentence to begin with.
        tables: what may stand at the joints.
        arguments: of the command line, without the program's name.
        program: the name to print.
        description: what the help begins with.
        choose: how a joint is given another thing.

    Raises:
        ValueError: if a name is in no table or an option is not read by what is chosen.
        SystemExit: after printing the help, or what tyro says of a value.
    """
    rest = [_flag_as_written(argument) for argument in arguments]
    root, rest = _choose_all(root, tables, rest, choose)
    _check_read(root, rest)
    # Where a thing is the only one of its role, there is nothing to choose.
    shown = [n for n in nodes(root) if [*tables[n.option.name]] != [n.option.name]]
    kind, fields = _as_dataclass(root, tables, shown)
    parsed = tyro.cli(kind, prog=program, description=description, args=rest)
    for leaf in leaves(root):
        group, name = fields[leaf.flag]
        holder = parsed if group is None else getattr(parsed, group)
        root = assign(root, leaf.place, getattr(holder, name))
    return root


def _flag_as_written(argument: str) -> str:
    """Return a flag with underscores, as parameters are called; values stay."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def _choose_all(
    root: Use, tables: Tables, arguments: list[str], choose: Choose
) -> tuple[Use, list[str]]:
    """Apply the choices of joints, those that others bring included."""
    wanted, rest = _split(arguments, set(tables), {leaf.flag for leaf in leaves(root)})
    while wanted:
        known = {node.flag: node for node in nodes(root)}
        flag = next((flag for flag in wanted if flag in known), None)
        if flag is None:
            break
        name, node = wanted.pop(flag), known[flag]
        if name == NONE:
            if node.option.default is not None:
                raise ValueError(f"--{flag} can't be none: {node.option.help}")
            root = choose(root, node, None)
        else:
            thing = thing_of(tables, node.option.name, f"--{flag}", name)
            same = isinstance(node.value, Use) and node.value.thing is thing
            root = root if same else choose(root, node, thing)
    for flag in wanted:
        readable = ", ".join(f"--{node.flag}" for node in nodes(root))
        raise ValueError(f"nothing here reads --{flag}; the joints are {readable}")
    return root, rest


def _split(
    arguments: list[str], roles: set[str], options: set[str]
) -> tuple[dict[str, str], list[str]]:
    """Part ``--joint NAME`` from all else; a joint's flag is made of roles' names."""
    chosen, rest, i = {}, [], 0
    while i < len(arguments):
        flag, equals, value = arguments[i].partition("=")
        following = i + 1 < len(arguments) and not arguments[i + 1].startswith("--")
        joint = flag.startswith("--") and roles.issuperset(flag[2:].split("."))
        if joint and flag[2:] not in options and (equals or following):
            chosen[flag[2:]] = value if equals else arguments[i + 1]
            i += 1 if equals else 2
        else:
            rest.append(arguments[i])
            i += 1
    return chosen, rest


def _check_read(root: Use, arguments: list[str]) -> None:
    """Refuse an option that is not read, and say what is.

    Raises:
        ValueError: see above.
    """
    flags = {leaf.flag for leaf in leaves(root)}
    chosen = {n.flag: n.value for n in nodes(root) if isinstance(n.value, Use)}
    places = {n.flag: n.place for n in nodes(root)}
    for argument in arguments:
        if not argument.startswith("--") or argument in ("--help", "--"):
            continue
        flag = argument[2:].partition("=")[0]
        # A switch is turned off by no_ before its name.
        head, _, last = flag.rpartition(".")
        positive = ".".join(filter(None, (head, last.removeprefix("no_"))))
        if flag in flags or positive in flags:
            continue
        if flag in places:
            raise ValueError(f"--{flag} needs a name; --help lists what there is")
        if head in chosen:
            thing = chosen[head].thing
            reads = [n for n, o in options_of(thing).items() if o.kind is not None]
            below = [n for n in nodes(root) if n.place[:-1] == places[head]]
            known = ", ".join(
                [f"--{head}.{n}" for n in reads] + [f"--{n.flag}" for n in below]
            )
            near = difflib.get_close_matches(last, reads, 1)
            hint = f"; did you mean --{head}.{near[0]}?" if near else ""
            raise ValueError(
                f"{label(thing)} does not read --{flag}; it reads "
                f"{known or 'no option'}{hint}"
            )
        near = [known for known in sorted(flags) if known.endswith(f".{flag}")]
        near += difflib.get_close_matches(flag, sorted(flags | chosen.keys()), 1)
        hint = f"; did you mean --{near[0]}?" if near else ""
        raise ValueError(f"nothing here reads --{flag}{hint}")


def _as_dataclass(
    root: Use, tables: Tables, shown: list[Node]
) -> tuple[type, dict[str, tuple[str | None, str]]]:
    """Return a dataclass for tyro, and where it holds the value of each flag."""
    fields: dict[str, tuple[str | None, str]] = {}
    top: list[Any] = []
    for node in shown:
        names = [*tables[node.option.name]]
        if node.option.default is None:
            names.append(NONE)
        text: str = node.option.help
        given: dict[str, Any] = {"default": NONE}
        if node.value is REQUIRED:
            given = {}
        elif node.value is not None:
            thing = node.value.thing
            text, given = f"{text} Here: {summary(thing)}", {"default": label(thing)}
        name = tyro.conf.arg(name=node.flag, help=text)
        choice: Any = Annotated[Literal[tuple(names)], name]  # type: ignore[valid-type]
        top.append((f"choose_{len(top)}", choice, dataclasses.field(**given)))
    groups: dict[str | None, list[tuple[Leaf, Any]]] = {}
    for leaf in leaves(root):
        head, _, name = leaf.flag.rpartition(".")
        group = "group_" + head.replace(".", "__") if head else None
        fields[leaf.flag] = group, name
        kind: Any = Annotated[leaf.option.kind, tyro.conf.arg(help=leaf.option.help)]
        given = {} if leaf.value is REQUIRED else {"default": leaf.value}
        entry = (name, kind, dataclasses.field(**given))
        groups.setdefault(head or None, []).append((leaf, entry))
    for head, entries in groups.items():
        made = [entry for _, entry in entries]
        if head is None:
            top += made
            continue
        kind = dataclasses.make_dataclass("Options", made, kw_only=True)
        kind.__doc__ = ""
        place = Annotated[kind, tyro.conf.arg(name=head)]
        top.append(("group_" + head.replace(".", "__"), place))
    made = dataclasses.make_dataclass("Sentence", top, kw_only=True)
    made.__doc__ = ""
    return made, fields
