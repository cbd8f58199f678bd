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

from flowjax._grids import circular_grid as circular_grid
from flowjax._grids import edm_grid as edm_grid
from flowjax._grids import log_snr_grid as log_snr_grid
from flowjax._grids import mirror_grid as mirror_grid
from flowjax._grids import power_grid as power_grid
from flowjax._grids import shifted_grid as shifted_grid
from flowjax._grids import uniform_grid as uniform_grid
from flowjax._pairs import EqualTime as EqualTime
from flowjax._pairs import PairSampler as PairSampler
from flowjax._pairs import any_step_pairs as any_step_pairs
from flowjax._pairs import dyadic_pairs as dyadic_pairs
from flowjax._pairs import either_direction as either_direction
from flowjax._pairs import interval_pairs as interval_pairs
from flowjax._pairs import logit_normal_pairs as logit_normal_pairs
from flowjax._pairs import ordered_pairs as ordered_pairs
from flowjax._pairs import reflow_pairs as reflow_pairs
from flowjax._pairs import to_data as to_data
from flowjax._pairs import uniform_pairs as uniform_pairs
from flowjax._times import TimeSampler as TimeSampler
from flowjax._times import arctan_normal as arctan_normal
from flowjax._times import logit_normal as logit_normal
from flowjax._times import u_shaped as u_shaped
from flowjax._times import uniform as uniform
