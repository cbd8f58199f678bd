"""What a run folder stores of its data, as JSON."""

import dataclasses
from typing import Annotated, Any

import msgspec

from experiments.data.base import Example
from experiments.data.conditions import Conditions
from experiments.data.entry_forms import TableForm, VectorForm
from experiments.data.forms import ImageForm, PointForm
from experiments.language.sentence import label, table

# Larger than any that a network here comes near to; nothing would ever end.
_Positive = Annotated[int, msgspec.Meta(gt=0, le=2**20)]
_Names, _Numbers = tuple[str, ...], tuple[float, ...]
_ENTRIES = {
    "num_classes": _Positive | None,  # pyright: ignore[reportOperatorIssue]
    "classes": _Names,
    "names": _Names,
    "means": _Numbers,
    "stds": _Numbers,
    "channels": Annotated[int, msgspec.Meta(ge=0)],
}

FORMS = table(ImageForm, PointForm, VectorForm, TableForm)


def encode_example(example: Example) -> dict[str, Any]:
    """Return an example as JSON has it."""
    form = example.form
    return {
        "event": example.event,
        "conditions": example.conditions._asdict(),
        "form": {"is": label(type(form)), **dataclasses.asdict(form)},
    }


def decode_example(stored: Any) -> Example:
    """Return the example that `encode_example` was given.

    Raises:
        KeyError: if an entry is missing.
        ValueError: if one is not of its type, or they do not fit each other.
    """
    sizes = Annotated[tuple[_Positive, ...], msgspec.Meta(min_length=1)]
    event = msgspec.convert(stored["event"], sizes)
    given = msgspec.convert(stored["conditions"], dict[str, Any])
    conditions = Conditions(
        **{name: msgspec.convert(given[name], kind) for name, kind in _ENTRIES.items()}
    )
    options = msgspec.convert(stored["form"], dict[str, Any])
    if options.get("is") not in FORMS:
        raise ValueError(f"the form of an example must be one of {', '.join(FORMS)}")
    form = msgspec.convert(options, FORMS[options.pop("is")])
    if len({len(conditions.names), len(conditions.means), len(conditions.stds)}) > 1:
        raise ValueError("the entries of the vector, means and stds differ in number")
    if conditions.classes and len(conditions.classes) != conditions.num_classes:
        raise ValueError("the names of the classes differ in number from the labels")
    form.check(event)
    return Example(event, conditions, form)
