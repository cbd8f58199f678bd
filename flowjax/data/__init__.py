"""Data: toy densities in pure JAX, and image sets from prepared ArrayRecord.

The densities need nothing but JAX. Image sets need the extra `data`, imported on first
use and never TensorFlow.
"""

from flowjax.data.batches import (
    BatchIterator,
    array_batches,
    image_batches,
    index_batches,
)
from flowjax.data.densities import (
    DENSITIES,
    Density,
    checkerboard,
    eight_gaussians,
    get_density,
    rings,
    s_curve,
    spirals,
    two_moons,
)
from flowjax.data.image_sets import ImageSource, load_arrays, load_source

__all__ = [
    "DENSITIES",
    "BatchIterator",
    "Density",
    "ImageSource",
    "array_batches",
    "checkerboard",
    "eight_gaussians",
    "get_density",
    "image_batches",
    "index_batches",
    "load_arrays",
    "load_source",
    "rings",
    "s_curve",
    "spirals",
    "two_moons",
]
