"""What a verified tree teaches: lessons for a corrector, answers for the text of its request.

Legend: n lessons, C candidates, V vocabulary, k some of its tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from adaptive_spec.drafters.causal_parallel import Moment
from adaptive_spec.heads.head import Head
from adaptive_spec.online.base import Feedback
from adaptive_spec.online.lessons import Batch
from adaptive_spec.online.passages import LIKELIEST, Passages
from adaptive_spec.tree import depths
from adaptive_spec.types import ROOT

OFF_PATH = 2
"""Lessons from nodes of a tree that were not visited, at most: the best ones."""


def lessons_of(head: Head, feedback: Feedback, moment: Moment, number: int) -> Batch:
    """Lessons of a verified tree: of the visited nodes, by depth, then of the best others; as deep
    as the draft went.

    Args:
        moment: what the draft was made of.
        number: of the tree.
    """
    tree, config = feedback.tree, head.config
    level = np.append(depths(tree.parent), 0)  # the root is node -1
    levels = len(moment.tokens)
    visited = [node for node in feedback.path.tolist() if level[node] < levels]
    known = {*visited, ROOT}
    others = [node for node in range(len(tree)) if node not in known and level[node] < levels]
    nodes = [*visited, *others[:OFF_PATH]]
    depth = level[nodes]
    device = moment.hidden.device
    paths = np.zeros((len(nodes), config.block), dtype=np.int64)
    for row, node in enumerate(nodes):
        paths[row, : depth[row] + 1] = _branch(tree.token, tree.parent, node, moment.anchor)
    candidates = torch.from_numpy(moment.tokens[depth]).to(device)
    logits = feedback.logits[torch.tensor(nodes, device=device) + 1]
    wanted = _chances(logits, logits.gather(1, candidates), moment.heat)
    right = np.full(len(nodes), -1)
    for row in range(len(visited)):
        hits = np.flatnonzero(moment.tokens[depth[row]] == feedback.tokens[row])
        right[row] = hits[0] if len(hits) else -1
    numbers = np.where(np.arange(len(nodes)) < len(visited), number, -1)
    where = torch.from_numpy(depth).to(device)
    rows = head.draft_rows(candidates)
    scores = moment.scores[where]
    return Batch(
        hidden=moment.hidden[where].bfloat16(),
        path=torch.from_numpy(paths).to(device),
        depth=where,
        rows=rows.int(),
        scores=scores if head.bias is None else scores - head.bias[rows],
        rest=torch.from_numpy(moment.rest[depth]).to(device).float(),
        heat=torch.full((len(nodes),), moment.heat, device=device),
        wanted=wanted,
        right=torch.from_numpy(right).to(device),
        tree=torch.from_numpy(numbers).to(device),
    )


def overconfidence(feedback: Feedback, moment: Moment) -> float:
    """How much surer a head was of its best first guess than the target is of it: the difference of
    two probabilities, 0 on average for a head that knows its target.

    Before any correction, since only the whole head can have come to be wrong. NaN at temperatures
    other than 1, which greedy requests draft at: what is in balance at 1 is not at others.
    """
    if moment.heat != 1.0:
        return float("nan")
    scores = moment.scores[0].float()
    highest, best = scores.max(dim=0)
    total = np.logaddexp(float(scores.logsumexp(dim=0)), float(moment.rest[0]))
    token = torch.as_tensor([[int(moment.tokens[0][int(best)])]], device=feedback.logits.device)
    logits = feedback.logits[:1]
    said = float(_chances(logits, logits.gather(1, token), 1.0))
    return float(np.exp(float(highest) - total)) - said


def answer(passages: Passages, feedback: Feedback) -> None:
    """What the target said at the visited nodes, into the request's text."""
    rows = torch.from_numpy(feedback.path + 1).to(feedback.logits.device)
    scores = feedback.logits[rows]
    highest, best = scores.topk(min(LIKELIEST, scores.shape[1]), dim=-1)
    chance = _chances(scores, highest, 1.0)  # heads learn at 1, and draft at any temperature
    passages.answer(feedback.request, best.int().cpu(), chance.cpu())


def _chances(scores: torch.Tensor, some: torch.Tensor, heat: float) -> torch.Tensor:
    """[n, k] softmax of scores [n, V] at a temperature, for some of them [n, k]."""
    top = scores.amax(dim=-1, keepdim=True).float()
    powers = (scores.float() - top).div_(heat).exp_()  # torch's own are many times slower on a CPU
    return (some.float() - top).div_(heat).exp_() / powers.sum(dim=-1, keepdim=True)


def _branch(token: Any, parent: Any, node: int, anchor: int) -> list[int]:
    """Tokens from the anchor to ``node``, both included."""
    found: list[int] = []
    while node != ROOT:
        found.append(int(token[node]))
        node = int(parent[node])
    return [anchor, *reversed(found)]
