"""A field that counts its evaluations."""

import jax


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
