"""Data: toy densities in pure JAX, and image sets from prepared ArrayRecord.

The densities need nothing but JAX. Image sets need the extra `data`, imported on first
use and never TensorFlow.
"""

from flowjax.data.array_files import open_arrays
from flowjax.data.batches import (
    BatchIterator,
    array_batches,
    image_batches,
    index_batches,
    row_batches,
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
from flowjax.data.image_folders import load_image_folder
from flowjax.data.image_sets import ImageSource, load_arrays, load_source
from flowjax.data.preparing import prepare_image_set
from flowjax.data.rows import (
    ArrayRows,
    RecordRows,
    Records,
    RowSource,
    SelectedRows,
    held_out_rows,
)

__all__ = [
    "DENSITIES",
    "ArrayRows",
    "BatchIterator",
    "Density",
    "ImageSource",
    "RecordRows",
    "Records",
    "RowSource",
    "SelectedRows",
    "array_batches",
    "checkerboard",
    "eight_gaussians",
    "get_density",
    "held_out_rows",
    "image_batches",
    "index_batches",
    "load_arrays",
    "load_image_folder",
    "load_source",
    "open_arrays",
    "prepare_image_set",
    "rings",
    "row_batches",
    "s_curve",
    "spirals",
    "two_moons",
]
