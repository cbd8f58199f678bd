"""Class-conditional MeanFlow on CIFAR-10, for accelerators.

python -m experiments.prepare_data cifar10
python -m experiments.train cifar10_mean_flow

Not run yet but for its smoke variant: it waits for an accelerator.
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
    data=Data(name="cifar10", batch_size=512, flip=True),
    network=Network(
        width=512, depth=12, num_heads=8, patch_size=2, dtype="bfloat16", qk_norm=True
    ),
    objective=Objective(weight_power=0.75),
    optimizer=Optimizer(learning_rate=3e-4, warmup_steps=5000, ema_half_life=5000),
    training=Training(steps=400_000, log_every=200, checkpoint_every=10_000),
    evaluation=Evaluation(samples=10_000),
)
