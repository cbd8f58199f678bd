"""What can be said of a sentence as a whole: its joints, its options, its JSON.

Every joint and every option has one flag. The joints that an experiment reads stand
beside each other, wherever they are read: ``--method.decay`` is an option of the
method, ``--penalty`` the joint that the method reads, ``--penalty.power`` an option of
the penalty. Only where a flag is taken already, a joint is called by its place:
``--penalty.penalty`` is the penalty inside the penalty.
"""

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from experiments.language.sentence import (
    REQUIRED,
    Option,
    Thing,
    Use,
    label,
    options_of,
)

Tables: TypeAlias = Mapping[str, Mapping[str, Thing]]
"""``role -> name -> thing``."""

Place: TypeAlias = tuple[str, ...]
"""The options that lead from the root to a joint or an option."""

FLAGS = {"sampler": "times"}
"""Joints whose flag is not their name: a pair of times is made of times."""

NONE = "none"
"""How it is written that a joint is left empty."""


class Node(NamedTuple):
    """A joint of a sentence.

    Attributes:
        flag: its name on the command line, without the dashes.
        place: where it stands.
        option: the option that it is the value of.
        value: what is chosen; None where it is left empty, `REQUIRED` where it is not
            chosen yet.
    """

    flag: str
    place: Place
    option: Option
    value: Any


class Leaf(NamedTuple):
    """An option of a sentence.

    Attributes:
        flag: its name on the command line, without the dashes.
        place: where it stands.
        option: what it is.
        value: its value, or `REQUIRED`.
    """

    flag: str
    place: Place
    option: Option
    value: Any


def nodes(root: Use) -> list[Node]:
    """Return the joints of a sentence, each before those below it."""
    found: list[Node] = []
    taken: set[str] = set()
    # Breadth first: what stands higher has the first choice of a flag.
    parents: list[tuple[Use, Place, str]] = [(root, (), "")]
    for parent, place, prefix in parents:
        for name, option in options_of(parent.thing).items():
            if option.kind is not None:
                continue
            flag = FLAGS.get(name, name)
            if flag in taken:
                flag = f"{prefix}.{name}"
            taken.add(flag)
            node = Node(flag, (*place, name), option, parent[name])
            found.append(node)
            if isinstance(node.value, Use):
                parents.append((node.value, node.place, flag))
    return found


def leaves(root: Use) -> list[Leaf]:
    """Return the options of a sentence, those of the root last."""
    found = []
    for node in nodes(root):
        if isinstance(node.value, Use):
            found += _leaves(node.value, node.place, f"{node.flag}.")
    return found + _leaves(root, (), "")


def _leaves(parent: Use, place: Place, prefix: str) -> list[Leaf]:
    return [
        Leaf(prefix + name, (*place, name), option, parent[name])
        for name, option in options_of(parent.thing).items()
        if option.kind is not None
    ]


def assign(root: Use, place: Place, value: Any) -> Use:
    """Return the sentence with another value at one place."""
    name, *rest = place
    if rest:
        value = assign(root[name], tuple(rest), value)
    return root.vary(**{name: value})


def choose(root: Use, node: Node, thing: Thing | None) -> Use:
    """Return the sentence with another thing at a joint, with its own defaults.

    What the thing needs below it and has no default for stays what it was. So one that
    wraps another of its kind wraps the one that was there.
    """
    if thing is None:
        return assign(root, node.place, None)
    kept = {}
    for name, option in options_of(thing).items():
        if option.kind is None and option.default is REQUIRED:
            inner = node.value if name == node.option.name else _inner(node.value, name)
            if isinstance(inner, Use):
                kept[name] = inner
    return assign(root, node.place, Use(thing, kept))


def _inner(value: Any, name: str) -> Any:
    return value[name] if isinstance(value, Use) and name in value else None


def thing_of(tables: Tables, role: str, flag: str, name: str) -> Thing:
    """Return what is called ``name`` in a role's table.

    Raises:
        ValueError: if nothing is; the message lists the names.
    """
    known = tables[role]
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"{flag} must be one of {', '.join(known)}; got {name}{hint}")
    return known[name]


def encode(root: Use) -> dict[str, Any]:
    """Return the options of a sentence as JSON has them, with all defaults.

    A chosen thing is an object whose ``"use"`` is its name.
    """
    return {
        name: _encode_value(option, root[name])
        for name, option in options_of(root.thing).items()
    }


def _encode_value(option: Option, value: Any) -> Any:
    if isinstance(value, Use):
        return {"use": label(value.thing), **encode(value)}
    if value is REQUIRED:
        raise ValueError(f"{option.name} is not chosen: {option.help}")
    return _as_text(value)


def _as_text(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def decode(tables: Tables, thing: Thing, stored: Any, *, at: str = "") -> Use:
    """Return what `encode` was given.

    An option that is not stored has its default: the code did not know it then.

    Raises:
        ValueError: if something is stored that the thing does not read, or a value is
            of another type; the message names the place.
    """
    if not isinstance(stored, Mapping):
        raise ValueError(f"{at or 'the whole'} must be an object; got {stored!r}")
    known, values = options_of(thing), {}
    if unknown := sorted(set(stored) - known.keys() - {"use"}):
        raise ValueError(
            f"{at or 'the whole'}: {label(thing)} does not read {', '.join(unknown)}"
        )
    for name, option in known.items():
        if name not in stored:
            if option.default is REQUIRED:
                raise ValueError(f"{at or 'the whole'} lacks {name}: {option.help}")
            continue
        place, value = f"{at}.{name}".lstrip("."), stored[name]
        if option.kind is None and value is not None:
            if not isinstance(value, Mapping) or not isinstance(value.get("use"), str):
                raise ValueError(f"{place} must say what it uses; got {value!r}")
            chosen = thing_of(tables, name, place, value["use"])
            value = decode(tables, chosen, value, at=place)
        values[name] = value
    try:
        return Use(thing, values)
    except ValueError as error:
        raise ValueError(f"{at}: {error}" if at else str(error)) from error


def differences(old: Use, new: Use) -> dict[str, tuple[Any, Any]]:
    """Return ``flag -> (old, new)`` of all that two sentences say differently."""
    said = []
    for root in (old, new):
        flags: dict[str, Any] = {
            leaf.flag: _as_text(leaf.value) for leaf in leaves(root)
        }
        for node in nodes(root):
            chosen = isinstance(node.value, Use)
            flags[node.flag] = label(node.value.thing) if chosen else NONE
        said.append(flags)
    a, b = said
    return {
        flag: (a.get(flag, "-"), b.get(flag, "-"))
        for flag in sorted(a.keys() | b.keys())
        if a.get(flag, "-") != b.get(flag, "-")
    }
