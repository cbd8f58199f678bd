"""Times: where on the path to train, and at which times to evaluate a solver.

A time sampler draws ``t`` [batch]; a pair sampler draws the start ``t`` and the end
``s`` of the interval over which an average velocity is learned, ``s >= t`` unless said
otherwise. A grid is an increasing numpy array from exactly 0 to exactly 1.

Where a sampler takes ``share_equal``, that share of the rows has ``s = t``: the anchor,
on which flow matching is done. They are the same rows of every batch, the first of each
group of consecutive rows, so that objectives can spare them the derivative at compile
time and every device holds its share of both kinds. The share is a fraction such as
0.75 whose denominator, at most 64, divides the batch.

Many papers put the noise at time 1. A logit-normal law with mean ``m`` on their clock
has mean ``-m`` on ours, because ``t = 1 - t_paper``.
"""

from flowjax.times.grids import (
    circular_grid,
    edm_grid,
    log_snr_grid,
    mirror_grid,
    power_grid,
    shifted_grid,
    uniform_grid,
)
from flowjax.times.groups import grouped_times
from flowjax.times.laws import (
    arctan_normal,
    logit_normal,
    u_shaped,
    uniform,
)
from flowjax.times.pairs import (
    EqualTime,
    any_step_pairs,
    dyadic_pairs,
    either_direction,
    interval_pairs,
    logit_normal_pairs,
    ordered_pairs,
    reflow_pairs,
    segment_pairs,
    to_data,
    uniform_pairs,
)

__all__ = [
    "EqualTime",
    "any_step_pairs",
    "arctan_normal",
    "circular_grid",
    "dyadic_pairs",
    "edm_grid",
    "either_direction",
    "grouped_times",
    "interval_pairs",
    "log_snr_grid",
    "logit_normal",
    "logit_normal_pairs",
    "mirror_grid",
    "ordered_pairs",
    "power_grid",
    "reflow_pairs",
    "segment_pairs",
    "shifted_grid",
    "to_data",
    "u_shaped",
    "uniform",
    "uniform_grid",
    "uniform_pairs",
]
