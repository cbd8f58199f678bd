"""Class-conditional MeanFlow on 8 x 8 handwritten digits, the default.

python -m experiments.train

Reached in 2.5 minutes on two cores of an AMD EPYC: one-step samples agree with their
label at 98.8 % (real held-out digits: 98.3 %), sliced W2 0.065 (real: 0.046).
"""

from experiments.config import Experiment

config = Experiment()
