"""MeanFlow on a 2-D density; choose another with --data.name spirals.

python -m experiments.train density_mean_flow

Reached in 2.7 minutes on two cores of an AMD EPYC: W2 of 1,000 one-step samples 0.185,
of the adaptive ODE 0.172 (real against real: 0.147).
"""

from experiments.config import (
    Data,
    Evaluation,
    Experiment,
    Network,
    Objective,
    Training,
)

# Half of the rows train the diagonal. With a quarter of them a run on two_moons lost
# its network in a burst of the gradient after 2200 steps.
config = Experiment(
    data=Data(name="eight_gaussians", batch_size=1024),
    network=Network(kind="mlp", width=192, depth=3),
    objective=Objective(time_mean=0.0, time_std=1.4),
    training=Training(steps=6000, log_every=100, checkpoint_every=2000),
    evaluation=Evaluation(samples=4000, batch_size=4000, tolerance=1e-5),
)
