"""Settings of all tests: eight virtual devices, strict promotion, run-time types.

The import hook makes beartype execute every jaxtyping annotation of the package, so a
wrong shape or dtype inside flowjax fails the test that produced it.
"""

import atexit
import os
import shutil
import tempfile
from importlib.metadata import version

# Most of the time of the suite is compilation, which these flags halve. XLA ends a
# process that gives it a flag it does not know: each stands where it was seen to work.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8"
    + (
        " --xla_backend_optimization_level=0"
        if version("jaxlib").startswith(("0.10.", "0.11."))
        else ""
    )
    + (
        " --xla_cpu_use_fusion_emitters=false"
        if version("jaxlib").startswith("0.10.")
        else ""
    ),
)
os.environ.setdefault("MPLBACKEND", "Agg")

# The workers and every process that a test starts inherit these, so that no program
# is compiled twice in one run. CI names a folder that its runs share.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jax-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], True)
# Below this reading a program back costs about as much as compiling it.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")

from jaxtyping import config, install_import_hook

import tests.typechecker  # noqa: F401  (the hook looks it up by name)

install_import_hook("flowjax", "tests.typechecker.check")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Run one test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def untyped():
    """Switch beartype off, to see the error that a user without it gets."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def key():
    """A typed key, the same in every test."""
    return jax.random.key(0)
