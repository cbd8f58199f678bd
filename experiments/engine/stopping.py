"""Being asked to stop, by SIGINT (ctrl-C) or SIGTERM (a scheduler), without a loss.

Python runs handlers of signals between two lines of its own, which may be minutes away
while a program is compiled. A thread is woken at once and acknowledges; what is done
about it is decided by the main thread, at one place.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)

REPEATED = 1.0
"""Seconds in which a second signal is the first once more: a shell or a launcher passes
on what the terminal has sent to the whole group already."""


NOTHING_LOST = "nothing is lost: the same command goes on"


class Stopped(KeyboardInterrupt):
    """What was asked to stop has stopped, and the same command goes on.

    No `Exception`: nothing that goes on after an error goes on after this.
    """


class Stop:
    """Whether this process was asked to stop.

    As a context manager it has the signals. The first one raises `Stopped` in the main
    thread or, within `hold`, only sets `asked`; a second one ends the process at once,
    as SIGKILL would. Outside the context, or in another than the main thread, the
    signals are the host program's and nothing is ever asked.

    Attributes:
        asked: whether there was a signal.
        so_far: what stopping at once means, for the message.
    """

    def __init__(self) -> None:
        self.asked = False
        self.so_far = NOTHING_LOST
        self._held = False
        self._restore: Callable[[], None] = lambda: None

    def __enter__(self) -> "Stop":
        if threading.current_thread() is not threading.main_thread():
            return self
        waiting, waking = os.pipe()
        os.set_blocking(waking, False)
        thread = threading.Thread(target=self._acknowledge, args=(waiting,))
        thread.daemon = True
        thread.start()
        wakeup = signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
        handlers = {n: signal.signal(n, self._note) for n in SIGNALS}

        def restore() -> None:
            for number, handler in handlers.items():
                if handler is not None:  # not one of Python's
                    signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup)
            os.close(waking)
            thread.join()

        self._restore = restore
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Let a signal wait until `asked` is looked at, or else to the end of this.

        Raises:
            Stopped: at the end, if there was one that nobody has heeded.
        """
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before
        if self.asked and not before:
            raise Stopped(f"stopped; {self.so_far}")

    def _note(self, number: int, frame: Any) -> None:
        first, self.asked = not self.asked, True
        if first and not self._held:
            raise Stopped(f"stopped; {self.so_far}")

    def _acknowledge(self, waiting: int) -> None:
        since = None
        while number := os.read(waiting, 1):
            if number[0] not in SIGNALS:  # of a handler that is not ours
                continue
            now = time.monotonic()
            if since is None:
                since = now
                what = "after this step" if self._held else "as soon as possible"
                os.write(2, f"\nstopping {what}; again to quit at once\n".encode())
            elif now - since > REPEATED:
                os.write(2, b"\nquitting at once\n")
                os._exit(128 + number[0])
        os.close(waiting)
