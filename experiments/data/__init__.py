"""Data sets: one object each, by name in `DATA`."""

from experiments.data.arrays import Arrays
from experiments.data.base import Dataset as Dataset
from experiments.data.base import Example as Example
from experiments.data.conditions import Conditions as Conditions
from experiments.data.images import Digits, Images, Tfds
from experiments.data.points import Density, Mixture
from experiments.data.records import RecordSet
from experiments.data.records import register as register
from experiments.data.tables import Table
from experiments.language.sentence import table

DATA = table(Digits, Tfds, Images, Arrays, Table, RecordSet, Density, Mixture)
"""What a data set is: everything that later asks about the data asks this object."""
