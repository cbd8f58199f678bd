"""Class-conditional MeanFlow on CIFAR-10, for accelerators.

python -m experiments.prepare_data cifar10
python -m experiments.train cifar10_mean_flow

Not run yet but for its smoke variant: it waits for an accelerator.
"""

from experiments.data.images import Tfds
from experiments.engine.experiment import Evaluation, Experiment, Training
from experiments.engine.optimizers import adamw
from experiments.language.sentence import use
from experiments.methods.mean_flow import MeanFlow
from flowjax.networks import DiT
from flowjax.objectives.penalties import adaptive
from flowjax.training.ema import half_life

experiment = Experiment(
    data=use(Tfds, name="cifar10", flip=True),
    method=use(MeanFlow, penalty=use(adaptive, power=0.75)),
    network=use(
        DiT,
        patch_size=2,
        width=512,
        depth=12,
        num_heads=8,
        dtype="bfloat16",
        qk_norm=True,
    ),
    optimizer=use(adamw, learning_rate=3e-4, warmup_steps=5000),
    ema=use(half_life, steps=5000.0, ramp_up=0.1),
    training=use(
        Training,
        steps=400_000,
        batch_size=512,
        log_every=200,
        checkpoint_every=10_000,
    ),
    evaluation=use(Evaluation, samples=10_000),
)
