"""Toy densities on the plane, drawn from a key in pure JAX.

Every member of `DENSITIES` is ``f(key, batch) -> [batch, 2]`` in the default float
dtype, safe under ``jit`` with a static ``batch``. Rows are independent and identically
distributed, with mean 0 and a standard deviation of about 1 per coordinate, so that a
standard normal source sits at the right place and scale.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.typing import PRNGKey

Points = Float[Array, "batch 2"]


@runtime_checkable
class Density(Protocol):
    """A distribution on the plane that can be drawn from."""

    def __call__(self, key: PRNGKey, batch: int, /) -> Points:
        """Return ``batch`` independent points [batch, 2]."""
        ...


def eight_gaussians(
    key: PRNGKey, batch: int, /, *, radius: float = 1.4, std: float = 0.14
) -> Points:
    """Draw from eight equal Gaussians, evenly spaced on a circle.

    ``x = radius (cos a, sin a) + std z`` with ``a`` uniform on the multiples of pi/4.
    The mean is 0 and the covariance ``(radius^2 / 2 + std^2) I``, 0.9996 I by default.

    Args:
        key: a typed key.
        batch: number of points.
        radius: distance of the component means from the origin.
        std: standard deviation of each component, in both coordinates.
    """
    key_angle, key_noise = _split(key, batch)
    component = jax.random.randint(key_angle, (batch,), 0, 8)
    angle = component.astype(jnp.result_type(float)) * (math.pi / 4)
    return radius * _circle(angle) + _noise(key_noise, batch, std)


def two_moons(key: PRNGKey, batch: int, /, *, noise: float = 0.1) -> Points:
    """Draw from two interleaved half circles of radius sqrt(2).

    The upper moon is ``(cos a, sin a)``, the lower ``(1 - cos a, 1/2 - sin a)`` with
    ``a ~ U[0, pi]``; both are moved by -(1/2, 1/4), scaled by sqrt(2) and blurred.
    The variances are 3/2 and ``9/8 - 2/pi``, plus ``noise^2``.

    Args:
        key: a typed key.
        batch: number of points.
        noise: standard deviation of the isotropic Gaussian blur.
    """
    key_points, key_noise = _split(key, batch)
    key_angle, key_moon = jax.random.split(key_points)
    angle = jax.random.uniform(key_angle, (batch,), maxval=math.pi)
    upper = _circle(angle) - jnp.array([[0.5, 0.25]])
    # The two moons are each other's image under a point reflection of the centred set.
    points = math.sqrt(2) * upper * _signs(key_moon, batch)[:, None]
    return points + _noise(key_noise, batch, noise)


def checkerboard(key: PRNGKey, batch: int, /) -> Points:
    """Draw uniformly from the dark squares of a 4 x 4 board on [-sqrt(3), sqrt(3)]^2.

    The square of column i and row j, counted from the lower left, is dark where i + j
    is even. Each coordinate is uniform on its own, with variance 1; their covariance
    is 3/16.

    Args:
        key: a typed key.
        batch: number of points.
    """
    key_square, key_inside = _split(key, batch)
    square = jax.random.randint(key_square, (batch,), 0, 8)
    column = square // 2
    row = 2 * (square % 2) + column % 2
    inside = jax.random.uniform(key_inside, (batch, 2))
    corner = jnp.stack([column, row], axis=1).astype(inside.dtype)
    return (corner + inside - 2) * (math.sqrt(3) / 2)


def s_curve(key: PRNGKey, batch: int, /, *, noise: float = 0.05) -> Points:
    """Draw from a curve shaped like the letter S.

    ``x = 0.9 (sin a, sign(a) (cos a - 1))`` with ``a ~ U[-3pi/2, 3pi/2]``, blurred. The
    variances are 0.81 times 1/2 and ``3/2 + 4 / (3 pi)``, plus ``noise^2``.

    Args:
        key: a typed key.
        batch: number of points.
        noise: standard deviation of the isotropic Gaussian blur.
    """
    key_angle, key_noise = _split(key, batch)
    angle = 1.5 * math.pi * jax.random.uniform(key_angle, (batch,), minval=-1.0)
    height = jnp.sign(angle) * (jnp.cos(angle) - 1)
    points = 0.9 * jnp.stack([jnp.sin(angle), height], axis=1)
    return points + _noise(key_noise, batch, noise)


def spirals(key: PRNGKey, batch: int, /, *, noise: float = 0.05) -> Points:
    """Draw from two Archimedean spiral arms, opposite each other.

    ``x = +-2 r (cos 3 pi r, sin 3 pi r)`` with ``r = sqrt(u)``, ``u ~ U[0, 1]``, which
    is close to uniform along the arm; blurred. ``E|x|^2 = 2 (1 + noise^2)``.

    Args:
        key: a typed key.
        batch: number of points.
        noise: standard deviation of the isotropic Gaussian blur.
    """
    key_points, key_noise = _split(key, batch)
    key_radius, key_arm = jax.random.split(key_points)
    radius = jnp.sqrt(jax.random.uniform(key_radius, (batch,)))
    signed = 2 * radius * _signs(key_arm, batch)
    points = signed[:, None] * _circle(3 * math.pi * radius)
    return points + _noise(key_noise, batch, noise)


def rings(key: PRNGKey, batch: int, /, *, noise: float = 0.05) -> Points:
    """Draw from four concentric circles of radius 1/2, 1, 3/2 and 2, equally likely.

    The mean is 0 and the covariance ``(15/16 + noise^2) I``.

    Args:
        key: a typed key.
        batch: number of points.
        noise: standard deviation of the isotropic Gaussian blur.
    """
    key_points, key_noise = _split(key, batch)
    key_ring, key_angle = jax.random.split(key_points)
    angle = jax.random.uniform(key_angle, (batch,), maxval=2 * math.pi)
    radius = jax.random.randint(key_ring, (batch,), 1, 5).astype(angle.dtype) / 2
    return radius[:, None] * _circle(angle) + _noise(key_noise, batch, noise)


DENSITIES: Mapping[str, Density] = MappingProxyType(
    {
        "eight_gaussians": eight_gaussians,
        "two_moons": two_moons,
        "checkerboard": checkerboard,
        "s_curve": s_curve,
        "spirals": spirals,
        "rings": rings,
    }
)
"""The densities of this module by name."""


def get_density(name: str) -> Density:
    """Return the density called ``name``.

    Raises:
        ValueError: if there is none; the message lists the known names.
    """
    if name not in DENSITIES:
        known = ", ".join(DENSITIES)
        raise ValueError(f"`name` must be one of {known}; got {name!r}")
    return DENSITIES[name]


def _split(key: PRNGKey, batch: int) -> tuple[PRNGKey, PRNGKey]:
    if batch < 1:
        raise ValueError(f"`batch` must be at least 1; got {batch}")
    first, second = jax.random.split(key)
    return first, second


def _circle(angle: Float[Array, "batch"]) -> Points:
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)


def _signs(key: PRNGKey, batch: int) -> Float[Array, "batch"]:
    return jax.random.rademacher(key, (batch,), dtype=jnp.result_type(float))


def _noise(key: PRNGKey, batch: int, std: float) -> Points:
    return std * jax.random.normal(key, (batch, 2))
