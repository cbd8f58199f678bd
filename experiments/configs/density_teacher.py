"""The teacher of the members on a density that distil one: flow matching.

python -m experiments.train density_teacher
"""

import dataclasses

from experiments.configs.density_mean_flow import config as base

config = dataclasses.replace(
    base,
    network=dataclasses.replace(base.network, times="start"),
    objective=dataclasses.replace(base.objective, name="flow_matching"),
)
