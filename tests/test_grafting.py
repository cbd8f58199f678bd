"""One network started from another, and the names that this rests on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.networks import (
    MLP,
    DiT,
    graft,
    ungrafted,
)
from tests.network_options import inputs


def test_graft_copies_by_path():
    old = {"params": {"a": {"kernel": np.ones((2, 3), np.float64)}, "b": np.ones(2)}}
    new = {
        "params": {
            "a": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)},
            "b": jnp.zeros(2),
            "c": jnp.zeros(1),
        }
    }
    grafted = jax.jit(graft)(old, new)
    assert jax.tree.map(lambda p: float(p.sum()), grafted) == {
        "params": {"a": {"kernel": 6.0, "bias": 0.0}, "b": 2.0, "c": 0.0}
    }
    assert jax.tree.map(jnp.result_type, grafted) == jax.tree.map(jnp.result_type, new)
    assert ungrafted(old, new) == ("['params']['a']['bias']", "['params']['c']")

    skipped = graft(old, new, skip=("a",))
    assert not skipped["params"]["a"]["kernel"].any()
    assert skipped["params"]["b"].all()
    assert "['params']['a']['kernel']" in ungrafted(old, new, skip=("a",))

    # a skipped leaf may have another shape, or no counterpart
    del new["params"]["b"]
    new["params"]["a"]["kernel"] = jnp.zeros((2, 4))
    with pytest.raises(ValueError, match=r"it lacks \['params'\]\['b'\]$"):
        graft(old, new)
    with pytest.raises(ValueError, match=r"\['kernel'\]` must have the shape \(2, 4\)"):
        graft(old, new, skip=("b",))
    nothing = graft(old, new, skip=("b", "kernel"))
    assert not any(leaf.any() for leaf in jax.tree.leaves(nothing))
    with pytest.raises(ValueError, match=r"it lacks \['a'\]\['kernel'\], \['b'\]"):
        graft(old["params"], new)


def test_parameters_of_the_plain_networks_have_not_moved():
    """Checkpoints hold these names and shapes."""
    shapes = {}
    for net, event in (
        (MLP(width=8, depth=1, num_classes=2), (3,)),
        (DiT(2, 8, 1, 2, qk_norm=True), (4, 4, 1)),
        (DiT(2, 8, 3, 2, scan=True), (4, 4, 1)),
    ):
        params = jax.eval_shape(net.init, jax.random.key(0), *inputs(event))
        names = jax.tree_util.tree_leaves_with_path(params["params"])
        shapes |= {
            f"{type(net).__name__} " + "/".join(entry.key for entry in path): leaf.shape
            for path, leaf in names
            if path[-1].key != "bias"
        }
    embeddings = {
        f"{kind} conditioning/{time}/{layer}/kernel": shape
        for kind in ("MLP", "DiT")
        for time in ("start", "duration")
        for layer, shape in (("Dense_0", (64, 8)), ("Dense_1", (8, 8)))
    }
    block = {
        "modulation/kernel": (8, 48),
        "qkv/kernel": (8, 24),
        "projection/kernel": (8, 8),
        "mlp_in/kernel": (8, 32),
        "mlp_out/kernel": (32, 8),
    }
    assert shapes == embeddings | {
        "MLP conditioning/labels": (3, 8),
        "MLP input/kernel": (3, 8),
        "MLP modulation_0/kernel": (8, 16),
        "MLP layer_0/kernel": (8, 8),
        "MLP output/kernel": (8, 3),
        "DiT input/kernel": (4, 8),
        "DiT modulation/kernel": (8, 16),
        "DiT output/kernel": (8, 4),
        "DiT block_0/query_norm/scale": (4,),
        "DiT block_0/key_norm/scale": (4,),
        **{f"DiT block_0/{name}": shape for name, shape in block.items()},
        **{f"DiT blocks/{name}": (3, *shape) for name, shape in block.items()},
    }
