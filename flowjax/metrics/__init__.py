"""Numbers that say how good samples are and how straight a sampler travels.

`distances` holds Wasserstein distances, `discrepancies` maximum mean discrepancies,
`frechet` the Fréchet distance of Gaussian fits, `neighbours` precision, recall,
density and coverage, `paths` the energy and straightness of trajectories.
"""

from flowjax.metrics.discrepancies import kernel_distance, mmd2
from flowjax.metrics.distances import sliced_wasserstein2, wasserstein2, wasserstein_1d
from flowjax.metrics.frechet import frechet_distance, frechet_from_moments
from flowjax.metrics.neighbours import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    precision_recall,
)
from flowjax.metrics.paths import (
    normalized_path_energy,
    path_energy,
    straightness,
    trajectory,
)

__all__ = [
    "DensityCoverage",
    "PrecisionRecall",
    "density_coverage",
    "frechet_distance",
    "frechet_from_moments",
    "kernel_distance",
    "mmd2",
    "normalized_path_energy",
    "path_energy",
    "precision_recall",
    "sliced_wasserstein2",
    "straightness",
    "trajectory",
    "wasserstein2",
    "wasserstein_1d",
]
