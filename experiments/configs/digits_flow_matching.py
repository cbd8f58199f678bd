"""Class-conditional flow matching on the digits: the many-step baseline.

python -m experiments.train digits_flow_matching
"""

import dataclasses

from experiments.config import Objective
from experiments.configs import digits_mean_flow

config = dataclasses.replace(
    digits_mean_flow.config, objective=Objective(name="flow_matching", time_mean=0.0)
)
