"""Class-conditional MeanFlow on 8 x 8 handwritten digits, the default.

python -m experiments.train
"""

from experiments.config import Experiment

config = Experiment()
