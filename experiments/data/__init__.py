"""Data sets: one object each, by name in `DATA`."""

from experiments.data.base import Dataset as Dataset
from experiments.data.base import Example as Example
from experiments.data.images import Digits, Tfds
from experiments.data.points import Density, Mixture
from experiments.language.sentence import table

DATA = table(Digits, Tfds, Density, Mixture)
