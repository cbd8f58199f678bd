"""Class-conditional flow matching on the digits: the many-step baseline.

python -m experiments.train digits_flow_matching

Reached on two cores of an AMD EPYC: adaptive ODE 99.9 % agreement and sliced W2 0.053
(real: 0.046) with 73 evaluations; one Euler step gives class means (recall 0).
"""

import dataclasses

from experiments.config import Objective
from experiments.configs import digits_mean_flow

config = dataclasses.replace(
    digits_mean_flow.config, objective=Objective(name="flow_matching", time_mean=0.0)
)
