"""Arms that learn from lessons: the calibrator and the corrector. Both cost a fraction of a step.

Of what has a row per draft token, only the rows that a trial's lessons need are copied.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from adaptive_spec.errors import UnsupportedError
from adaptive_spec.heads.corrector import LowRank
from adaptive_spec.heads.head import Head
from adaptive_spec.online.lessons import Batch, Lessons
from adaptive_spec.online.rescoring import divergence, expected_lengths, log_chances
from adaptive_spec.online.trials import NOT_FINITE, Outcome, limited

TINY = 1e-10
LEAST_TREES = 30
"""Trees that a trial is judged by, at least: the error of fewer is not known."""


class _Rows:
    """Rows of a table [V, r], moved by row-wise AdaGrad: one number of state per row (Mudigere et
    al. 2022)."""

    def __init__(self, table: torch.Tensor, rate: float) -> None:
        self._table, self._rate = table, rate
        self._squares = torch.zeros(len(table), 1, device=table.device)

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """[u] -> [u, r] copies that can be moved."""
        self._rows = rows
        self.values = self._table.detach()[rows].clone().requires_grad_()
        self._new = self._squares[rows].clone()
        return self.values

    @torch.no_grad()
    def move(self) -> None:
        slope = self.values.grad
        assert slope is not None
        self._new += slope.pow(2).mean(dim=1, keepdim=True)
        self.values -= self._rate * slope / (self._new.sqrt() + TINY)
        self.values.grad = None

    @torch.no_grad()
    def put(self) -> None:
        self._table.data[self._rows] = self.values.detach()
        self._squares[self._rows] = self._new


class LessonArm:
    """Gradient steps on lessons; what they move is up to those who inherit.

    Args:
        head: the one that drafts.
        steps: gradient steps of a trial; batch: lessons of all of them together.
        off_path: weight of nodes that were not visited.
        least: trees that a trial is judged by, at least.
    """

    name = ""
    needs_passages, moves_head = False, True

    def __init__(
        self,
        head: Head,
        lessons: Lessons,
        *,
        steps: int,
        batch: int,
        least: int,
        off_path: float = 0.1,
    ) -> None:
        self._head, self._lessons = head, lessons
        self._steps, self._batch, self._off_path = steps, batch, off_path
        self._least, self._luck = least, torch.Generator().manual_seed(0)

    def pieces(self) -> Iterator[Outcome | None] | None:
        split = self._lessons.split(self._batch, self._luck, self._least)
        if split is None:
            return None
        fit, held = (part.to(self._head.output.device) for part in split)
        return self._pieces(fit, held)

    def _pieces(self, fit: Batch, held: Batch) -> Iterator[Outcome | None]:
        rows, where = torch.unique(torch.cat([fit.rows, held.rows]), return_inverse=True)
        fit_where, held_where = where[: len(fit)], where[len(fit) :]
        self._begin(rows)
        for part in range(self._steps):
            some = torch.arange(part, len(fit), self._steps, device=fit.depth.device)
            if not len(some):
                break
            with torch.inference_mode(False), torch.enable_grad():
                found = self._chances(fit.at(some), rows, fit_where[some], new=True)
                loss = divergence(found, fit.at(some), self._off_path)
                loss.backward()  # type: ignore[no-untyped-call]
                moved = self._move()
            if not moved:
                yield NOT_FINITE
                return
            yield None
        with torch.no_grad():
            old = expected_lengths(self._chances(held, rows, held_where, new=False), held)
            new = expected_lengths(self._chances(held, rows, held_where, new=True), held)
        yield Outcome.of(new - old)

    def settle(self, kept: bool) -> None:
        raise NotImplementedError

    def _begin(self, rows: torch.Tensor) -> None:
        """Copy what is about to move; ``rows`` are the draft tokens of the trial."""
        raise NotImplementedError

    def _chances(
        self, batch: Batch, rows: torch.Tensor, where: torch.Tensor, *, new: bool
    ) -> torch.Tensor:
        """As ``log_chances``, by the copy or by what drafts."""
        raise NotImplementedError

    def _move(self) -> bool:
        """One step along the gradients; False if they are not finite."""
        raise NotImplementedError


class CalibratorArm(LessonArm):
    """A bias per draft token: what is said more often now than when the head was trained.

    That is the correction for shifted labels of Alexandari et al. (2020), by gradient steps.

    Raises:
        UnsupportedError: the head's corrector moves more than scores.
    """

    name = "calibrator"

    def __init__(
        self, head: Head, lessons: Lessons, *, rate: float = 0.02, least: int = LEAST_TREES
    ) -> None:
        super().__init__(head, lessons, steps=2, batch=512, least=least)
        self._corrector = _bias_corrector(head)
        self._bias = head.token_bias()
        self._rows = _Rows(self._bias.data[:, None], rate)

    def _begin(self, rows: torch.Tensor) -> None:
        self._rows.take(rows)

    def _chances(
        self, batch: Batch, rows: torch.Tensor, where: torch.Tensor, *, new: bool
    ) -> torch.Tensor:
        bias = self._rows.values[:, 0] if new else self._bias.detach()[rows]
        keys = self._corrector.outward.detach()[rows]
        return log_chances(self._corrector, self._head, batch, keys, bias, where)

    def _move(self) -> bool:
        if not limited([self._rows.values]):
            return False
        self._rows.move()
        return True

    def settle(self, kept: bool) -> None:
        if kept:
            self._rows.put()


class CorrectorArm(LessonArm):
    """The path-conditioned part of a head: small weights by Adam, a row per draft token.

    Args:
        rate: learning rate of the small weights; ``row_rate``: of the rows.

    Raises:
        UnsupportedError: a corrector of another kind, or none.
    """

    name = "corrector"

    def __init__(
        self,
        head: Head,
        lessons: Lessons,
        *,
        rate: float = 3e-4,
        row_rate: float = 3e-3,
        steps: int = 4,
        batch: int = 1024,
        least: int = LEAST_TREES,
    ) -> None:
        super().__init__(head, lessons, steps=steps, batch=batch, least=least)
        self._live, self._bias = _bias_corrector(head), head.bias
        with torch.inference_mode(False):  # they learn in any mode
            self._copy = copy.deepcopy(self._live).requires_grad_(False)
        self._rows = _Rows(self._live.outward, row_rate)
        live = dict(self._live.named_parameters())
        self._pairs = [
            (live[name], weight)
            for name, weight in self._copy.named_parameters()
            if name != "outward"
        ]
        self._small = [weight.requires_grad_() for _, weight in self._pairs]
        self._adam = torch.optim.Adam(self._small, lr=rate)

    def _begin(self, rows: torch.Tensor) -> None:
        self._rows.take(rows)

    def _chances(
        self, batch: Batch, rows: torch.Tensor, where: torch.Tensor, *, new: bool
    ) -> torch.Tensor:
        bias = None if self._head.bias is None else self._head.bias.detach()[rows]
        corrector = self._copy if new else self._live
        keys = self._rows.values if new else self._live.outward.detach()[rows]
        return log_chances(corrector, self._head, batch, keys, bias, where)

    def _move(self) -> bool:
        slope = self._rows.values.grad
        if slope is None or not limited(self._small, float(slope.abs().sum())):
            return False
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self._rows.move()
        return True

    @torch.no_grad()
    def settle(self, kept: bool) -> None:
        """What the optimiser remembers of a trial that is thrown away goes as well."""
        for live, weight in self._pairs:
            (live if kept else weight).data.copy_((weight if kept else live).detach())
        if kept:
            self._rows.put()
        else:
            self._adam.state.clear()
            self._adam.zero_grad(set_to_none=True)


def _bias_corrector(head: Head) -> LowRank:
    if not isinstance(head.corrector, LowRank):
        raise UnsupportedError(
            f"online updates of corrector={head.config.corrector!r}: only of those that add a "
            "bias to the scores (low_rank, markov, recurrent_bias)"
        )
    return head.corrector
