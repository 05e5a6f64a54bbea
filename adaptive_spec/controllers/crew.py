"""Which drafters a request asks: those that run a model only while they earn what they cost.

Beside drafters that look up, whose price is next to nothing, one that runs a model has to bring
more than its seconds are worth. What it brings in a step is what the best tree of all promises
beyond the best tree of lookups alone, the price of their nodes included (``course.gain``); what it
costs are its own seconds. While that is negative on average it rests, and is looked at from time to
time, ever more rarely.
"""

from __future__ import annotations

MEMORY, PATIENCE = 48.0, 12
"""Steps over which the gain is averaged, and before a verdict."""
PAUSE, LONGEST_PAUSE = 32, 256
"""Steps between two looks: at first, and at most."""
LOOKS, ENOUGH = 4, 0.02
"""Steps of a look, and the mean gain in tokens that ends a rest."""


class Crew:
    """One request's choice between all drafters and those that only look up."""

    def __init__(self) -> None:
        self.full = True
        """Drafters that run a model are asked."""
        self.lost = 0.0
        """Tokens per step that they cost more than they brought when they were sent to rest."""
        self._gain, self._seen = 0.0, 0
        self._pause, self._wait = PAUSE, 0

    def successor(self) -> Crew:
        """For the next request: the same state with half the evidence, and a look soon."""
        heir = Crew()
        heir.full, heir.lost, heir._gain = self.full, self.lost, self._gain if self.full else 0.0
        heir._seen = min(self._seen, PATIENCE) // 2 if self.full else 0
        heir._pause, heir._wait = PAUSE, min(self._wait, PATIENCE)
        return heir

    @property
    def models(self) -> bool:
        """True if this step should ask drafters that run a model."""
        return self.full or self.looks

    @property
    def looks(self) -> bool:
        """True if models rest, and this step looks at what they would bring."""
        return not self.full and self._wait <= 0

    @property
    def words(self) -> str:
        """What is said of a rest."""
        return f"lookups only: models had been losing {self.lost:.3f} tokens a step"

    def observe(self, gain: float | None) -> None:
        """One step.

        Args:
            gain: tokens that models promised beyond the others, less their cost in tokens; None
                where they were not asked, or nothing is known about time.
        """
        self._wait -= not self.full
        if gain is None:
            return
        self._seen += 1
        self._gain += (gain - self._gain) / min(self._seen, MEMORY)
        if self.full and self._seen >= PATIENCE and self._gain < 0.0:
            self.dismiss(-self._gain)
        elif not self.full and self._seen >= LOOKS:
            back = self._gain > ENOUGH
            self._pause = PAUSE if back else min(2 * self._pause, LONGEST_PAUSE)
            self._rest(full=back)

    def dismiss(self, lost: float) -> None:
        """Send models to rest: drafting has been losing ``lost`` tokens a step."""
        self.lost = lost
        self._rest(full=False)

    def _rest(self, full: bool) -> None:
        self.full, self._wait = full, 0 if full else self._pause
        self._gain, self._seen = 0.0, 0
