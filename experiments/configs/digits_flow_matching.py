"""Class-conditional flow matching on the digits: the many-step baseline.

python -m experiments.train digits_flow_matching

Reached on two cores of an AMD EPYC: adaptive ODE 99.9 % agreement and sliced W2 0.053
(real: 0.046) with 73 evaluations; one Euler step gives class means (recall 0).
"""

from experiments.configs.digits_mean_flow import experiment as base
from experiments.language.sentence import use
from experiments.methods.velocity import FlowMatching
from flowjax.times import logit_normal

experiment = base.vary(method=use(FlowMatching, times=use(logit_normal, mean=0.0)))
