"""Bad input: every public function, one argument spoiled at a time.

A clear error is a ValueError or TypeError whose sentence names the argument. The calls
are made from the annotations (`tests.bad_calls`); a new function is among them.
"""

import collections
import functools

import pytest

from tests import bad_calls

LEAST_CLEAR = 0.9

# What is let through, and why.
A_NUMBER = "a number may be an array without axes"
ACCEPTED = {
    ("guidance.rules.extrapolation", "scale", "an axis more"): A_NUMBER,
    ("guidance.rules.optimal_scale", "scale", "an axis more"): A_NUMBER,
    ("sampling.ode_at", "times", "one time"): "a solve may be saved once",
    ("objectives.penalties.plus", "weight", "a number"): "an array of any shape",
}

# Functions without an argument that an annotation says anything about.
NOTHING_TO_SPOIL = {
    "interpolants.linear",
    "interpolants.linear_variance_preserving",
    "interpolants.trigonometric",
    "sampling.diffusions.zero",
}


@functools.cache
def functions_by_group():
    groups = collections.defaultdict(list)
    for group, name, function in bad_calls.public_functions():
        groups[group].append((name, function))
    return groups


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("group", functions_by_group())
def test_bad_input_is_refused_by_name(group):
    count, silent, obscure = collections.Counter(), [], []
    for name, function in functions_by_group()[group]:
        call = bad_calls.valid_call(group, name, function)
        # Under a trace where that is possible: nothing is computed then.
        eager = bad_calls.outcome(call)[0] != "accepted"
        if eager:
            bad_calls.run(call, eager=True)
        calls = list(bad_calls.bad_calls(call))
        assert bool(calls) != (name in NOTHING_TO_SPOIL), name
        for bad in calls:
            kind, error = bad_calls.outcome(bad, eager=eager)
            case = (name, bad.spoiled, bad.how)
            if kind == "accepted" and case in ACCEPTED:
                continue
            count[kind] += 1
            if kind == "accepted":
                silent.append(case)
            if kind == "obscure":
                obscure.append((*case, f"{type(error).__name__}: {error}"[:150]))
    print(group, dict(count))
    assert not silent, silent
    assert count["clear"] >= LEAST_CLEAR * count.total(), obscure
