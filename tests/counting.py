"""What a program does, counted: evaluations of a field, arrays that travel."""

import collections
import re

import jax

_COLLECTIVE = re.compile(
    r"= (?P<type>.*?) (?P<name>all-reduce|all-gather|all-to-all|reduce-scatter|"
    r"collective-permute|collective-broadcast|ragged-all-to-all)(?:-start)?\("
)


class Counter:
    """A field that counts how often it is evaluated, compiled or not."""

    def __init__(self, field):
        self.field, self.count = field, 0

    def __call__(self, *args):
        jax.debug.callback(self.add)
        return self.field(*args)

    def add(self):
        self.count += 1

    def reset(self):
        jax.effects_barrier()
        count, self.count = self.count, 0
        return count


def collectives(compiled_text):
    """Count the arrays that each kind of collective carries in a compiled program.

    Arrays and not operations: the compiler is free to combine several into one.
    """
    count = collections.Counter()
    for line in compiled_text.splitlines():
        if match := _COLLECTIVE.search(line):
            count[match["name"]] += len(re.findall(r"\w+\[[\d,]*\]", match["type"]))
    return count
