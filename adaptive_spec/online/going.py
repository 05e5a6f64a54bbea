"""A trial that is going on: in pieces between steps, or in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from adaptive_spec.online.rules import Opinion
from adaptive_spec.online.trials import Arm, Outcome, failure
from adaptive_spec.profilers.clock import Clock


class Trial:
    """Goes through the pieces of an arm's trial.

    Args:
        background: in a thread, which ends with its process and at ``stop``.
    """

    def __init__(
        self,
        arm: Arm,
        opinion: Opinion,
        pieces: Iterator[Outcome | None],
        background: bool,
        clock: Clock,
    ) -> None:
        self.arm, self.opinion, self._pieces, self._clock = arm, opinion, pieces, clock
        self.seconds = 0.0
        self._found: Outcome | None = None
        self._error: Exception | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        if background:
            self._thread = threading.Thread(target=self._run, name="adaptive-spec update")
            self._thread.start()

    def go_on(self, began: float, deadline: float) -> Outcome | None:
        """Until it is over or it is late; at least one piece. What came of it, if it is over."""
        if self._thread is not None:
            if self._thread.is_alive():
                return None
            return self._found or failure(self._error)
        try:
            for found in self._pieces:
                if found is not None or self._clock() >= deadline:
                    return found
        except Exception as error:
            return failure(error)
        finally:
            self.seconds += self._clock() - began
        return failure()

    def stop(self) -> None:
        """End it after the piece that is going on; what it found is lost."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        began = self._clock()
        try:
            for found in self._pieces:
                self._found = found
                if found is not None or self._over.is_set():
                    break
        except Exception as error:
            self._error = error
        self.seconds = self._clock() - began
