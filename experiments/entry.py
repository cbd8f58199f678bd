"""What all entry points have in common: how they end.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | an error, said in a sentence |
| 2 | an option that can't be read |
| 75 | stopped; the same command goes on (``EX_TEMPFAIL``) |
| 130, 143 | interrupted, where there is nothing to go on with |

What nobody expects, a bug, ends in a traceback.
"""

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import ParamSpec

from experiments.engine.stopping import Stopped

STOPPED = 75

P = ParamSpec("P")


def entry_point(main: Callable[P, None]) -> Callable[P, None]:
    """Return ``main``, which then ends as the table above says."""

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        if "absl.logging" in sys.modules:
            # Orbax logs with its traceback what it raises as well.
            logging.getLogger("absl").setLevel(logging.CRITICAL)
        shown, warnings.formatwarning = warnings.formatwarning, _sentence
        try:
            main(*args, **kwargs)
        except (ValueError, OSError, ImportError, FloatingPointError) as error:
            _leave_others(f"error: {error}")
            raise SystemExit(f"error: {error}") from error
        except Stopped as stopped:
            print(stopped, file=sys.stderr, flush=True)
            raise SystemExit(STOPPED) from stopped
        except KeyboardInterrupt as interrupt:
            print("interrupted", file=sys.stderr, flush=True)
            raise SystemExit(130) from interrupt
        finally:
            warnings.formatwarning = shown

    return run


def _sentence(message: Warning | str, *_: object, **__: object) -> str:
    """Return a warning as its reader wants it, without a line of our code."""
    return f"warning: {message}\n"


def _leave_others(text: str) -> None:
    """End at once where there are other processes.

    To end in order is to wait for all of them, and they wait for this one.
    """
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        print(text, file=sys.stderr, flush=True)
        os._exit(1)
