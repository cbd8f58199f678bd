"""MeanFlow on a 2-D density; choose another with --density spirals.

python -m experiments.train density_mean_flow

Reached on two cores of an AMD EPYC: sliced W2 0.051 in one step, 0.041 with the
adaptive ODE (real against real: 0.030).
"""

from experiments.data.points import Density
from experiments.engine.experiment import Evaluation, Experiment, Training
from experiments.engine.optimizers import adamw
from experiments.language.sentence import use
from experiments.methods.mean_flow import MeanFlow
from flowjax.networks import MLP
from flowjax.times import ordered_pairs, uniform

experiment = Experiment(
    data=use(Density),
    method=use(
        MeanFlow,
        pairs=use(ordered_pairs, sampler=use(uniform), share_equal=0.5),
    ),
    network=use(MLP, width=192, depth=3),
    # At a learning rate of 2e-3 longer runs lost their network in a burst of the
    # gradient.
    optimizer=use(adamw, learning_rate=1e-3),
    training=use(
        Training, steps=6000, batch_size=1024, log_every=100, checkpoint_every=2000
    ),
    evaluation=use(Evaluation, samples=4000, batch_size=4000, tolerance=1e-5),
)
