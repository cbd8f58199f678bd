"""Couplings: which source sample is paired with which data sample.

A coupling takes a batch of source and a batch of data samples and returns the pairs
that the interpolant joins. It changes the joint law of (x0, x1), hence how straight the
marginal flow is, and must leave both marginals alone.
"""

from flowjax.couplings.independent import independent

__all__ = ["independent"]
