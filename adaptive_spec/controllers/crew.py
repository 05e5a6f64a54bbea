"""Which drafters are asked: all of them, or only those that look up.

Beside drafters that look up, whose price is next to nothing, one that runs a model has to bring
more than its seconds are worth. What it brings cannot be told from its own steps: where it drafts,
steps begin at other places of the text, those that no drafter foresaw, and lookups look better
there than they are by themselves. So the other way is tried now and then, for a block of steps, and
its tokens per second are compared with those of the steps just before and just after, because
texts differ far more than ways of drafting do (a switchback experiment). One comparison says
little: the mean log ratio is shrunk towards what models are taken to gain. Looks become rarer while
they bear out what is preferred; one that does not is soon followed by the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

LOOK, PAUSE, LONGEST_PAUSE = 24, 192, 1536
"""Steps of a look at the other way, and between two looks: at first, and at most."""
LONGEST_WITHOUT = 768
"""Steps without models, at most: where they are worth asking they gain more than they lose where
they are not, so that is to be found out sooner."""
SIDE = LOOK // 2
"""Steps before and after a look that it is compared with."""
REST = 48
"""Steps without models after they have lost against plain decoding; doubles while that repeats, and
models that go on for as long have lasted: it is counted from the beginning."""
SHORT = 3
"""Losses in a row up to which a rest ends with the text that it began in: the next one may be
easy, and finding out is cheap beside resting through it."""
PRIOR, DOUBT = 0.08, 0.15
"""What models are taken to gain before anything is seen (log of the ratio), and its deviation."""
NOISE = 0.35
"""Deviation of one comparison."""
FARTHEST = 0.5
"""No comparison says more than this."""
KEPT = 0.85
"""Share of the earlier evidence that a comparison leaves: texts change."""
OUTLIER = 4.0
"""No step counts for more than so many times the usual seconds."""


@dataclass(slots=True)
class Tally:
    """Sums over steps, of the last ``memory`` or so if that is given."""

    memory: float | None = None
    steps: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0

    def add(self, tokens: float, seconds: float) -> None:
        """One step."""
        if self.steps >= 1.0:
            seconds = min(seconds, OUTLIER * self.seconds / self.steps)
        keep = 1.0 if self.memory is None else 1.0 - 1.0 / self.memory
        self.steps = self.steps * keep + 1.0
        self.tokens = self.tokens * keep + tokens
        self.seconds = self.seconds * keep + seconds


class Crew:
    """A decoder's choice between all drafters and those that only look up."""

    def __init__(self) -> None:
        self.prefers_models = True
        """What the comparisons are in favour of."""
        self.looks = False
        """This step is part of a look at the other way."""
        self._pause, self._left = PAUSE, PAUSE
        self._near, self._look = Tally(SIDE), Tally()
        self._judging, self._fresh, self._packed = False, True, 1
        self._resting, self._dismissals, self._lasted = False, 0, 0
        self._weight = self._sum = 0.0

    @property
    def models(self) -> bool:
        """True if this step should ask drafters that run a model."""
        return self.prefers_models != self.looks

    @property
    def advantage(self) -> float:
        """Expected log ratio of the tokens per second with models and without."""
        precise = DOUBT**-2 + self._weight * NOISE**-2
        return (PRIOR * DOUBT**-2 + self._sum * NOISE**-2) / precise

    @property
    def words(self) -> str:
        """Why models are not asked."""
        if self.looks:
            return "lookups only: a look at how fast they are by themselves"
        if self.advantage > 0.0:
            return "lookups only: with models drafting had been losing against plain decoding"
        return f"lookups only: with models {self.advantage:+.1%} tokens/s are expected"

    def observe(self, tokens: float, seconds: float, packed: int = 1) -> None:
        """One step that drafted the present way.

        The first step of a stretch is left out: models then catch up with what they missed.

        Args:
            packed: requests of the step; only steps of as many are compared.
        """
        if packed != self._packed:
            self._packed = packed
            self._begin(self._pause)
        if self._fresh:
            self._fresh = False
        else:
            (self._look if self.looks else self._near).add(tokens, seconds)
        self._lasted = self._lasted + 1 if self.models else 0
        if self._lasted >= REST:
            self._dismissals = 0
        self._left -= 1
        if self._left > 0:
            return
        if self.prefers_models != (self.advantage > 0.0):  # dismissed
            self.prefers_models = not self.prefers_models
            self._begin(self._pause)
        elif self.looks:
            self.looks, self._judging, self._left, self._fresh = False, True, SIDE, True
            self._near.memory = None
        elif self._judging:
            self._judge()
        else:
            self.looks, self._left, self._look, self._fresh = True, LOOK, Tally(), True

    def dismiss(self) -> None:
        """Drafting with models loses even against plain decoding here: go on without, for a while.

        That is no comparison with lookups, so afterwards the evidence decides as before.
        """
        self.prefers_models = False
        self._begin(min(REST << self._dismissals, LONGEST_WITHOUT))
        self._resting, self._dismissals = True, min(self._dismissals + 1, 8)

    def text_ended(self) -> None:
        """A request is over, and with it a rest that few losses in a row have led to."""
        if self._resting and self._dismissals <= SHORT:
            self.prefers_models = self.advantage > 0.0
            self._begin(self._pause)

    def renew(self) -> None:
        """Models are others now: what they lost before says little, so a rest ends. While they are
        asked, comparisons go on: small changes follow each other more closely than looks; and what
        speaks for them stays, as they are others because they are better."""
        self._dismissals = 0
        if not self.prefers_models:
            if self.advantage <= 0.0:
                self._weight, self._sum = 0.0, 0.0
            self.prefers_models, self._pause = True, PAUSE
            self._begin(PAUSE)

    def _judge(self) -> None:
        """A look and what lies around it are complete."""
        near, look = self._near, self._look
        ratio = 0.0
        if near.tokens and look.tokens and near.seconds and look.seconds:
            ratio = log(near.tokens * look.seconds / (look.tokens * near.seconds))
            ratio = min(max(ratio, -FARTHEST), FARTHEST)
            self._sum = KEPT * self._sum + (ratio if self.prefers_models else -ratio)
            self._weight = KEPT * self._weight + 1.0
        before, self.prefers_models = self.prefers_models, self.advantage > 0.0
        doubt = ratio < 0.0  # by chance, or because texts have changed: looked at again soon
        if before != self.prefers_models:
            self._pause = PAUSE
        elif not doubt:
            longest = LONGEST_PAUSE if self.prefers_models else LONGEST_WITHOUT
            self._pause = min(2 * self._pause, longest)
        self._dismissals = 0
        self._begin(PAUSE if doubt else self._pause)

    def _begin(self, steps: int) -> None:
        """A stretch of the preferred way, until the next look."""
        self.looks, self._judging, self._left, self._fresh = False, False, steps, True
        self._resting, self._lasted = False, 0
        self._near = Tally(SIDE)
