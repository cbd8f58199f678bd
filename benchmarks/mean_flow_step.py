"""What a MeanFlow training step costs over a plain flow-matching step.

    python -m benchmarks.mean_flow_step                  # a small DiT, for a CPU
    python -m benchmarks.mean_flow_step --large          # DiT-B/4 on 32 x 32 x 4

The floor. In units of one forward pass F over the batch, flow matching costs 3 F
(forward, and a backward of twice that). MeanFlow needs in addition the tangent of the
forward pass, about 1.15 F, on the rows with s != t only. With a share of 25 % that is
3 + 0.25 * 1.15 = 3.29 F, a ratio of 1.096; with it on all rows 4.15 F, or 1.38.
Attention shifts these figures a little.

FLOPs are XLA's count of the compiled step; times are medians of interleaved calls in
one process, so that a busy machine slows all three alike.
"""

import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro

from flowjax import interpolants, objectives, times
from flowjax.fields import diagonal
from flowjax.networks import DiT
from flowjax.training import ema, init_state, jit_over_mesh, make_step

SHARE_EQUAL = 0.75


def make_loss(network: DiT, kind: str) -> Callable[..., Any]:
    """Return the loss of one of the compared steps; all draw the same numbers."""

    def loss(params: Any, key: Any, batch: Any, state: Any) -> Any:
        key_source, key_time = jax.random.split(key)
        x1, label = batch
        x0 = jax.random.normal(key_source, x1.shape)
        t, s = times.logit_normal_pairs(key_time, len(x1), share_equal=SHARE_EQUAL)
        path = interpolants.sample_path(interpolants.linear(), x0, x1, t, label)
        u: Any = partial(network.apply, params)
        if kind == "flow matching":
            return objectives.flow_matching(diagonal(u), path), {}
        share = SHARE_EQUAL if kind == "MeanFlow, split rows" else 0.0
        return objectives.mean_flow(u, path, s, share_equal=share), {}

    return loss


def main(large: bool = False, batch_size: int = 64, repeats: int = 10) -> None:
    """Print FLOPs and wall time of each step over those of flow matching.

    Args:
        large: DiT-B/4 on 32 x 32 x 4 latents in bfloat16 instead of a small DiT.
        batch_size: rows per step.
        repeats: timed calls of each step.
    """
    if large:
        network = DiT(4, 768, 12, 12, num_classes=1000, dtype=jnp.bfloat16)
        event = (32, 32, 4)
    else:
        network = DiT(2, 192, 4, 4, num_classes=10)
        event = (16, 16, 1)
    key = jax.random.key(0)
    batch = (
        jax.random.normal(key, (batch_size, *event)),
        jnp.arange(batch_size) % 10,
    )
    optimizer = optax.adam(1e-4)

    def init(key: Any) -> Any:
        t = jnp.zeros((1,))
        x, label = jnp.zeros((1, *event)), jnp.zeros((1,), jnp.int32)
        return init_state(key, network.init(key, x, t, t, label), optimizer)

    kinds = ("flow matching", "MeanFlow, split rows", "MeanFlow, all rows")
    flops, states, steps, seconds = {}, {}, {}, {kind: [] for kind in kinds}
    for kind in kinds:
        step = partial(
            make_step,
            make_loss(network, kind),
            optimizer,
            ema_decay=ema.constant_decay(0.99),
        )
        executor = jit_over_mesh(init, step)
        states[kind], rows = executor.init(key), executor.put(batch)
        compiled = executor.step.lower(states[kind], rows).compile()  # type: ignore
        flops[kind] = compiled.cost_analysis()["flops"]
        steps[kind] = compiled
        states[kind], _ = compiled(states[kind], rows)
    for _ in range(repeats):
        for kind in kinds:
            start = time.perf_counter()
            states[kind], metrics = steps[kind](states[kind], rows)
            jax.block_until_ready(metrics)
            seconds[kind].append(time.perf_counter() - start)

    print(
        f"{jax.devices()[0].device_kind} x {jax.device_count()}, {platform.machine()}"
    )
    print(f"jax {jax.__version__}, Python {platform.python_version()}")
    print(f"{network}\nbatch {batch_size} of {event}, {repeats} repeats\n")
    print("| step | GFLOP | ratio | ms (median) | ratio |\n|---|---|---|---|---|")
    base_time = statistics.median(seconds[kinds[0]])
    for kind in kinds:
        median = statistics.median(seconds[kind])
        print(
            f"| {kind} | {flops[kind] / 1e9:.2f} | {flops[kind] / flops[kinds[0]]:.3f} "
            f"| {1e3 * median:.1f} | {median / base_time:.3f} |"
        )


if __name__ == "__main__":
    tyro.cli(main)
