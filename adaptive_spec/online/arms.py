"""What an update may change: so far the corrector alone, which costs a fraction of a step.

A trial never touches what drafts: it changes a copy, the copy is judged on held-out lessons, and
only a copy that is better by more than one standard error replaces the weights. Of the output side
of the corrector, which has a row per draft token, only the rows that the batch needs are copied.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from adaptive_spec.errors import UnsupportedError
from adaptive_spec.heads.corrector import LowRank
from adaptive_spec.heads.head import Head
from adaptive_spec.online.lessons import Batch
from adaptive_spec.online.rescoring import divergence, expected_lengths, log_chances

CLIP = 1.0
"""Largest norm of the gradient of the small weights."""
TINY = 1e-10


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a trial."""

    gain: float
    """Draft tokens per tree that the new weights expect more on held-out lessons."""
    error: float
    """Standard error of ``gain`` over trees."""
    kept: bool
    reason: str


class CorrectorArm:
    """Gradient steps on the path-conditioned part of a head.

    Small weights move by Adam, the rows of draft tokens by row-wise AdaGrad (one number of state
    per row: Mudigere et al. 2022), so the optimiser's state is a fraction of the weights.

    Args:
        head: the one that drafts; its corrector must add a bias to the scores.
        rate: learning rate of the small weights; ``row_rate``: of the rows.
        steps: gradient steps of a trial; batch: lessons of each.
        off_path: weight of nodes that were not visited.

    Raises:
        UnsupportedError: a corrector of another kind, or none.
    """

    name = "corrector"

    def __init__(
        self,
        head: Head,
        *,
        rate: float = 1e-3,
        row_rate: float = 1e-2,
        steps: int = 4,
        batch: int = 256,
        off_path: float = 0.1,
    ) -> None:
        if not isinstance(head.corrector, LowRank):
            raise UnsupportedError(
                f"online updates of corrector={head.config.corrector!r}: only those that add a "
                "bias to the scores (low_rank, markov, recurrent_bias)"
            )
        self._head, self._live = head, head.corrector
        with torch.inference_mode(False):  # they learn in any mode
            self._copy = copy.deepcopy(head.corrector).requires_grad_(False)
            self._squares = torch.zeros(len(self._live.outward), 1)
        self._row_rate, self._steps, self._off_path = row_rate, steps, off_path
        self.batch = batch
        self._names = [name for name, _ in self._copy.named_parameters() if name != "outward"]
        self._small = [dict(self._copy.named_parameters())[name] for name in self._names]
        self._adam = torch.optim.Adam(self._small, lr=rate)

    def trial(self, fit: Batch, held: Batch, late: Callable[[], bool]) -> Outcome:
        """Fit a copy, judge it, and take it over if it is better.

        Args:
            late: whether the deadline has passed; asked before every gradient step.
        """
        rows, where = torch.unique(torch.cat([fit.rows, held.rows]), return_inverse=True)
        fit_where, held_where = where[: len(fit)], where[len(fit) :]
        with torch.inference_mode(False), torch.enable_grad():
            keys = self._live.outward.detach()[rows].clone().requires_grad_()
            squares = self._squares[rows].clone()
            sound = self._fit(fit, fit_where, keys, squares, late)
        with torch.no_grad():
            if not sound:
                self._restore()
                return Outcome(0.0, 0.0, False, "not finite")
            gain, error = self._judge(held, held_where, keys, rows)
            if not gain > error:
                self._restore()
                return Outcome(gain, error, False, "no better")
            self._take_over(keys, rows, squares)
        return Outcome(gain, error, True, "better")

    def _fit(
        self,
        fit: Batch,
        where: torch.Tensor,
        keys: torch.Tensor,
        squares: torch.Tensor,
        late: Callable[[], bool],
    ) -> bool:
        """Move the copy; False if anything was not finite."""
        for weight in self._small:
            weight.requires_grad_()
        for part in range(self._steps):
            if late():
                break
            some = torch.arange(part, len(fit), self._steps)
            if not len(some):
                break
            batch = fit.at(some)
            found = log_chances(self._copy, self._head, batch, keys, where[some])
            loss = divergence(found, batch, self._off_path)
            self._adam.zero_grad(set_to_none=True)
            keys.grad = None
            loss.backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.clip_grad_norm_(self._small, CLIP)
            slope = keys.grad
            if slope is None or not bool(torch.isfinite(norm + slope.abs().sum())):
                return False
            self._adam.step()
            with torch.no_grad():
                squares += slope.pow(2).mean(dim=1, keepdim=True)
                keys -= self._row_rate * slope / (squares.sqrt() + TINY)
        return all(bool(torch.isfinite(weight).all()) for weight in (*self._small, keys))

    def _judge(
        self, held: Batch, where: torch.Tensor, keys: torch.Tensor, rows: torch.Tensor
    ) -> tuple[float, float]:
        """Mean and standard error, over trees, of what new weights expect more than old ones."""
        old = log_chances(self._live, self._head, held, self._live.outward[rows], where)
        new = log_chances(self._copy, self._head, held, keys, where)
        more = expected_lengths(new, held) - expected_lengths(old, held)
        error = float(more.std(ddof=1)) / np.sqrt(len(more)) if len(more) > 1 else np.inf
        return float(more.mean()), float(error)

    def _take_over(self, keys: torch.Tensor, rows: torch.Tensor, squares: torch.Tensor) -> None:
        live = dict(self._live.named_parameters())
        for name, weight in zip(self._names, self._small, strict=True):
            live[name].data.copy_(weight.detach())
        self._live.outward.data[rows] = keys.detach()
        self._squares[rows] = squares

    def _restore(self) -> None:
        """The copy as the weights are; what the optimiser remembers of the trial is forgotten."""
        live = dict(self._live.named_parameters())
        for name, weight in zip(self._names, self._small, strict=True):
            weight.data.copy_(live[name].detach())
        self._adam.state.clear()
