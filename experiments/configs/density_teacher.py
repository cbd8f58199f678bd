"""The teacher of the methods on a density that learn from one: flow matching.

python -m experiments.train density_teacher
"""

from experiments.configs.density_mean_flow import experiment as base
from experiments.language.sentence import use
from experiments.methods.velocity import FlowMatching
from flowjax.times import uniform

experiment = base.vary(
    method=use(FlowMatching, times=use(uniform)), network={"times": "start"}
)
