"""The teacher of the methods on the digits that learn from one: flow matching.

python -m experiments.train digits_teacher
"""

from experiments.configs.digits_mean_flow import experiment as base
from experiments.language.sentence import use
from experiments.methods.velocity import FlowMatching

experiment = base.vary(method=use(FlowMatching), network={"times": "start"})
