"""Class-conditional MeanFlow on MNIST, prepared once by experiments.prepare_data.

python -m experiments.prepare_data mnist
python -m experiments.train mnist_mean_flow
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
    data=Data(name="mnist", batch_size=128),
    network=Network(width=192, depth=6, num_heads=4, patch_size=4),
    objective=Objective(weight_power=0.75),
    optimizer=Optimizer(learning_rate=1e-3, warmup_steps=500, ema_half_life=1000),
    training=Training(steps=20_000, log_every=100, checkpoint_every=1000),
    evaluation=Evaluation(samples=5000),
)
