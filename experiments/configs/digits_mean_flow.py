"""Class-conditional MeanFlow on 8 x 8 handwritten digits, the default.

python -m experiments.train

Reached in 2.5 minutes on two cores of an AMD EPYC: one-step samples agree with their
label at 99.3 % (real held-out digits: 98.7 %), sliced W2 0.061 (real: 0.046).
"""

from experiments.data.images import Digits
from experiments.engine.experiment import Experiment, Training
from experiments.language.sentence import use
from experiments.methods.mean_flow import MeanFlow
from flowjax.networks import DiT

experiment = Experiment(
    data=use(Digits),
    method=use(MeanFlow),
    network=use(DiT, patch_size=4, width=192, depth=4, num_heads=4),
    training=use(Training, steps=2500, batch_size=128),
)
