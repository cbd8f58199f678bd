"""The average velocity of a policy, which is how it is sampled."""

from typing import Protocol, runtime_checkable

from flowjax.contracts import checked
from flowjax.fields import chained, euler_step
from flowjax.policies.kinds import IntegrablePolicy, Policy
from flowjax.typing import AverageVelocityField, Condition, Count, State, Time


@runtime_checkable
class PolicyMaker(Protocol):
    """One forward pass of a network, turned into a policy for the segment [t, s]."""

    def __call__(self, x: State, t: Time, s: Time, cond: Condition = None, /) -> Policy:
        """Return the policy of the segments that start at ``x`` and ``t``."""
        ...


@checked
def policy_average(policy: Policy, *, steps: Count = 128) -> AverageVelocityField:
    """Return the average velocity of a policy: closed form, or ``steps`` Euler steps.

    Raises:
        ValueError: if ``steps`` is less than 1.
    """
    if not isinstance(policy, IntegrablePolicy):
        return chained(euler_step(policy.velocity), steps)

    def u(x: State, t: Time, s: Time, cond: Condition = None, /) -> State:
        return policy.average_velocity(t, s)

    return u


@checked
def policy_step(
    make_policy: PolicyMaker, *, steps: Count = 128
) -> AverageVelocityField:
    """Return the average velocity over [t, s] of the policy made at ``(x, t)``.

    Ready for `flowjax.sampling.few_step`, whose grid are the segments: one forward pass
    of the network each.

    Args:
        make_policy: ``(x, t, s, cond) -> policy``.
        steps: Euler steps per segment of a policy without closed form.

    Raises:
        ValueError: if ``steps`` is less than 1.
    """

    def u(x: State, t: Time, s: Time, cond: Condition = None, /) -> State:
        return policy_average(make_policy(x, t, s, cond), steps=steps)(x, t, s)

    return u
