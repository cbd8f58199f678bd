"""The rows of the benchmarks: methods of the one table, whose losses can be traced."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.mixture_maps import ROWS, model_of, road
from benchmarks.objective_costs import COSTS, Counter
from experiments.language.sentence import label
from experiments.methods import METHODS

BATCH = 64


@pytest.fixture(scope="module")
def counter():
    return Counter(64, 1, 2, BATCH)


def of_the_table(method):
    return METHODS.get(label(method.thing)) is method.thing


@pytest.mark.parametrize("name", ROWS)
def test_a_mixture_row_is_a_method_with_a_loss_per_row(name):
    assert of_the_table(ROWS[name])
    model = model_of(ROWS[name], steps=10, batch=BATCH, width=16)
    prepare, loss = road(model)

    def losses(seed):
        state = model.init(jax.random.key(seed))
        pairs = prepare(state.key, {"index": jnp.arange(BATCH)})
        return loss(state.params, state.key, pairs, state)[0]

    assert jax.eval_shape(losses, jnp.int32(0)).shape == (BATCH,)


@pytest.mark.parametrize("name", COSTS)
def test_a_row_of_costs_is_a_method_with_a_loss_per_row(name, counter):
    assert of_the_table(COSTS[name].method)
    taught = COSTS[name].teacher is not None
    loss, shapes = counter.loss(COSTS[name], network_teacher=taught)
    assert jax.eval_shape(loss, *shapes)[0].shape == (BATCH,)
