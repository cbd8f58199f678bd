"""Class-conditional MeanFlow on MNIST, prepared once by experiments.prepare_data.

python -m experiments.prepare_data mnist
python -m experiments.train mnist_mean_flow
"""

from experiments.config import (
    Data,
    Evaluation,
    Experiment,
    Network,
    Optimizer,
    Training,
)

config = Experiment(
    data=Data(name="mnist", batch_size=128),
    network=Network(width=128, depth=4, num_heads=4, patch_size=4),
    optimizer=Optimizer(ema_half_life=200),
    training=Training(steps=4000, checkpoint_every=200),
    evaluation=Evaluation(samples=3000),
)
