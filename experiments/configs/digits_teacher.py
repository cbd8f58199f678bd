"""The teacher of the members on the digits that distil one: flow matching.

python -m experiments.train digits_teacher
"""

import dataclasses

from experiments.configs.digits_mean_flow import config as base

config = dataclasses.replace(
    base,
    network=dataclasses.replace(base.network, times="start"),
    objective=dataclasses.replace(base.objective, name="flow_matching"),
)
