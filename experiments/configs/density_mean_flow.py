"""MeanFlow on a 2-D density; choose another with --data.name spirals.

python -m experiments.train density_mean_flow
"""

from experiments.config import (
    Data,
    Evaluation,
    Experiment,
    Network,
    Objective,
    Optimizer,
    Training,
)

config = Experiment(
    data=Data(name="checkerboard", batch_size=512),
    network=Network(kind="mlp", width=256, depth=4),
    # In two dimensions the adaptive weight biases the field: power 0.
    objective=Objective(time_mean=0.0, time_std=1.4, share_equal=0.5),
    optimizer=Optimizer(learning_rate=2e-3, ema_half_life=500),
    training=Training(steps=6000, log_every=100, checkpoint_every=2000),
    evaluation=Evaluation(samples=4000, batch_size=4000, tolerance=1e-5),
)
