"""Sentences: what is chosen at every joint of an experiment, with which options.

An experiment says what is joined how. A word of it is a `Use`: a thing (a function of
the library, a network's Module, a method's or a data set's dataclass) and the options
it is used with. What an option is called, its type, its default and its help are read
from the thing: its signature and its docstring. Nothing declares them again.

A parameter that can be written as text (a number, a name, a tuple of these) is an
option. A parameter called by the name of a role, such as ``penalty``, is a joint: its
value is again a `Use`. Every other parameter (a key, a batch, a field) is given by the
road when the thing is called, and is no option.
"""

import dataclasses
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias, Union, get_args, get_origin

import docstring_parser
import msgspec
from jax.typing import DTypeLike

Thing: TypeAlias = Callable[..., Any]
"""A function of the library, or a class: a Module or a dataclass."""

REQUIRED = inspect.Parameter.empty
"""The default of an option that has none."""

ROLES = {
    "data": "What to learn.",
    "density": "Which density of the plane.",
    "source": "Where the noise at t=0 comes from.",
    "coupling": "Which noise is paired with which example.",
    "path": "How a pair is joined: the interpolant.",
    "method": "What is learned, and from which identity.",
    "times": "The law of the times at which the path is looked at.",
    "sampler": "The law of the times that pairs of times are made of.",
    "second": "The law of the second of two times, where it is another.",
    "pairs": "The law of a start and a destination.",
    "penalty": "How a residual becomes a loss.",
    "weight": "A weight of time.",
    "guidance": "Guidance that is learned, as a part of the target.",
    "teacher": "Whom to learn from.",
    "dispersion": "How the spread of features is measured.",
    "network": "What learns it.",
    "optimizer": "How parameters follow gradients.",
    "ema": "How fast the average of the parameters follows them.",
    "training": "How long, and what to leave behind.",
    "evaluation": "What to measure at the end.",
    "sampling": "How samples are drawn.",
    "solver": "How steps are taken along the velocity.",
    "grid": "Where the steps lie.",
    "diffusion": "How much noise is added on the way.",
    "rule": "How the guided prediction is formed.",
}
"""The joints, by the name that a parameter has wherever it is one."""

GIVEN = frozenset({"num_classes", "vector_features", "array_channels", "out_features"})
"""Parameters that could be written as text, but follow from the data or the method."""

Precision = Literal["float32", "bfloat16", "float16", "float64"]
"""How a dtype is written."""


class Option(NamedTuple):
    """A parameter of a thing that an experiment may set.

    Attributes:
        name: its name.
        kind: its type, as far as that can be written as text; None for a joint.
        default: its default, or `REQUIRED`.
        help: what the thing's docstring says of it.
        kept: of a joint, whether the thing wants the `Use` itself, to build it later.
    """

    name: str
    kind: Any
    default: Any
    help: str
    kept: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """A thing and the options it is used with; what is left out has its default.

    Raises:
        ValueError: if the thing does not read an option, or a value is of another type.
    """

    thing: Thing
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the options against the thing that reads them."""
        known = options_of(self.thing)
        if unknown := sorted(self.options.keys() - known.keys()):
            raise ValueError(
                f"{label(self.thing)} does not read {', '.join(unknown)}; it reads "
                f"{', '.join(known) or 'no option'}"
            )
        checked = {k: self._checked(known[k], v) for k, v in self.options.items()}
        object.__setattr__(self, "options", types.MappingProxyType(checked))

    def _checked(self, option: Option, value: Any) -> Any:
        if option.kind is None:
            if isinstance(value, Use) or value is option.default:
                return value
            wanted = f"Expected a `use` of something for the role {option.name}"
        else:
            try:
                return msgspec.convert(value, option.kind)
            except msgspec.ValidationError as error:
                wanted = str(error)
        name = f"{label(self.thing)}'s {option.name}"
        raise ValueError(f"{name}: {wanted}; got {value!r}")

    def __eq__(self, other: object) -> bool:
        """Compare what is said, whether it is a default or not."""
        if not isinstance(other, Use) or self.thing is not other.thing:
            return NotImplemented if not isinstance(other, Use) else False
        return all(self[name] == other[name] for name in options_of(self.thing))

    def __hash__(self) -> int:
        """Hash the thing: equal uses have equal things."""
        return hash(self.thing)

    def __contains__(self, name: str) -> bool:
        """Say whether the thing reads an option of that name."""
        return name in options_of(self.thing)

    def __getitem__(self, name: str) -> Any:
        """Return the value of an option, its default where it is not set.

        Raises:
            KeyError: if the thing has no such option.
        """
        option = options_of(self.thing)[name]
        value = self.options.get(name, option.default)
        # The library's defaults at a joint are functions themselves.
        bare = option.kind is None and callable(value) and value is not REQUIRED
        return Use(value) if bare and not isinstance(value, Use) else value

    def vary(self, **options: Any) -> "Use":
        """Return the same thing with some options set."""
        return Use(self.thing, {**self.options, **options})

    def build(self, **given: Any) -> Any:
        """Return the thing with its options, whatever is below it built first.

        What is ``given`` by the road reaches every thing with a parameter of that name.
        A thing that then lacks nothing is called; one that still lacks arguments is
        bound with `functools.partial`, if there is anything to bind, for the road to
        call.

        Raises:
            ValueError: if an option without default is not set.
        """
        arguments: dict[str, Any] = {}
        for name, option in options_of(self.thing).items():
            value = self[name]
            if value is REQUIRED:
                raise ValueError(f"{label(self.thing)} needs {name}: {option.help}")
            built = isinstance(value, Use) and not option.kept
            arguments[name] = value.build(**given) if built else value
        parameters = _parameters(self.thing)
        arguments |= {k: v for k, v in given.items() if k in parameters}
        lacks = any(
            parameter.default is REQUIRED and name not in arguments
            for name, parameter in parameters.items()
        )
        if lacks:
            bound = functools.partial(self.thing, **arguments)
            return bound if arguments else self.thing
        return self.thing(**arguments)

    def walk(self) -> typing.Iterator["Use"]:
        """Yield this use and all below it."""
        yield self
        for name in options_of(self.thing):
            if isinstance(value := self[name], Use):
                yield from value.walk()


def use(thing: Thing, **options: Any) -> Any:
    """Return ``Use(thing, options)``; Any, so that it can be a default of any type."""
    return Use(thing, options)


def label(thing: Thing) -> str:
    """Return the name that a thing is known by, a class's in the way of a function's.

    ``AlphaFlow`` is ``alpha_flow``, ``MLP`` is ``mlp``.
    """
    name = getattr(thing, "__name__", str(thing))
    if inspect.isclass(thing):
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", name).lower()
    return name


def table(*things: Thing) -> dict[str, Thing]:
    """Return ``name -> thing`` for things known by their own names."""
    return {label(thing): thing for thing in things}


def summary(thing: Thing) -> str:
    """Return the first line of a thing's docstring."""
    return (inspect.getdoc(thing) or "").strip().split("\n")[0]


def papers(thing: Thing) -> list[str]:
    """Return the arXiv numbers that a thing's docstring names."""
    found = re.findall(r"\d{4}\.\d{5}", inspect.getdoc(thing) or "")
    return list(dict.fromkeys(found))


@functools.cache
def options_of(thing: Thing) -> dict[str, Option]:
    """Return the options of a thing by name, in the order of its signature."""
    annotations, helps = _annotations(thing), _helps(thing)
    found: dict[str, Option] = {}
    for name, parameter in _parameters(thing).items():
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY or name in GIVEN:
            continue
        annotation = annotations.get(name, Any)
        kind = plain(annotation)
        if kind is None and (name not in ROLES or _is_data(annotation)):
            continue
        kept = Use in (annotation, *get_args(annotation))
        text = helps.get(name) or (ROLES[name] if kind is None else "")
        default = parameter.default
        if kind is Precision and default is not REQUIRED:
            default = default.__name__  # a scalar type, which is written by its name
        found[name] = Option(name, kind, default, text, kept)
    return found


def _is_data(annotation: Any) -> bool:
    """Say whether a parameter takes arrays: a `Path` of points is no joint ``path``."""
    return inspect.isclass(annotation) and issubclass(annotation, tuple)


def plain(annotation: Any) -> Any:
    """Return the part of a type that can be written as text, or None.

    ``float | Float[Array, "batch"]`` is ``float``; a dtype is written by its name.
    """
    if annotation == DTypeLike:
        return Precision
    if annotation in (bool, int, float, str) or get_origin(annotation) is Literal:
        return annotation
    arguments = get_args(annotation)
    if get_origin(annotation) is tuple:
        parts = tuple(a if a is Ellipsis else plain(a) for a in arguments)
        return None if None in parts else tuple[parts]  # type: ignore[valid-type]
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for a in arguments if (kind := plain(a)) is not None]
        if kinds and type(None) in arguments:
            kinds.append(type(None))
        return Union[tuple(kinds)] if kinds else None  # noqa: UP007
    return None


@functools.cache
def _parameters(thing: Thing) -> dict[str, inspect.Parameter]:
    # A wrapper, such as the type checker of the tests, shows what it wraps.
    parameters = dict(inspect.signature(thing).parameters)
    if "parent" in parameters:  # of a Module; its name is not ours to choose either
        del parameters["parent"], parameters["name"]
    return {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }


def _annotations(thing: Thing) -> dict[str, Any]:
    if not inspect.isclass(thing):
        return typing.get_type_hints(inspect.unwrap(thing))
    hints: dict[str, Any] = {}
    for base in reversed(thing.__mro__):
        names = vars(base).get("__annotations__", {})
        module = vars(inspect.getmodule(base) or types)
        for name, hint in names.items():
            hints[name] = eval(hint, module) if isinstance(hint, str) else hint
    return hints


def _helps(thing: Thing) -> dict[str, str]:
    """Return what the docstring says of each parameter, bases of a class first."""
    helps: dict[str, str] = {}
    for one in reversed(thing.__mro__) if inspect.isclass(thing) else (thing,):
        if one is object:
            continue
        parsed = docstring_parser.parse(
            inspect.getdoc(one) or "", docstring_parser.DocstringStyle.GOOGLE
        )
        for entry in parsed.params:
            helps[entry.arg_name] = " ".join((entry.description or "").split())
    return helps
