"""How true a head's branches are (design, section 12).

The *branch gap* is the mean over branches of the absolute difference of summed draft and target
log-probabilities along the branch, q being normalised over the whole draft vocabulary; the *branch
hit rate* at depth d is the share of nodes of depth d on those branches whose best child is the
target's argmax given that branch. The best branch is left out: it is the rest that a head without
path conditioning gets wrong. All heads are asked at the same places of the same texts, and every
branch is one that the head itself would propose there.

Legend: T tokens of a text, P places, D levels of a branch, V draft vocabulary, H hidden.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from adaptive_spec.heads.blocks import slot_states
from adaptive_spec.heads.head import Head
from adaptive_spec.training.batches import batch_at
from adaptive_spec.training.generating import Capture, Written

DEPTH, BRANCHES = 4, 5
"""Levels of a branch; so many of the best are looked at, the first left out."""
BEAM = 32
"""Branches that the search for the best keeps at every level, and children of each."""


@dataclass(frozen=True, slots=True)
class Text:
    """Prompt and answer, and where a head is asked: positions of the newest token."""

    tokens: Sequence[int]
    places: Sequence[int]


def places(prompt: int, length: int, count: int) -> list[int]:
    """At most ``count`` positions of newest tokens, spread over an answer.

    Args:
        prompt: tokens of the prompt. length: of prompt and answer.
    """
    first = max(prompt - 1, 1)
    count = min(count, max(length - 1 - first, 0))
    middle = np.array([(first + length) / 2 - 1])
    spread = middle if count == 1 else np.linspace(first, length - 2, count)
    return sorted(set(spread.round().astype(int).tolist()))


@torch.no_grad()
def branch_facts(
    model: Any, layers: Sequence[Any], head: Head, texts: Sequence[Text]
) -> dict[str, Any]:
    """``gap`` in nats, ``hits`` by depth, and how many ``places`` they are taken from.

    Args:
        model: the target, ``layers`` its decoder layers.
        head: with the target's weights lent to it.
    """
    gaps: list[float] = []
    hits: dict[int, list[bool]] = defaultdict(list)
    for text in texts:
        hidden = _hidden(model, layers, head, text)
        for place, states in zip(text.places, hidden, strict=True):
            known = list(text.tokens[: place + 1])
            branches, drafted = _best(head, states, known[-1])
            truth = _truth(model, known, branches[1:])
            likely = truth[:, :-1].gather(2, branches[1:, :, None])[..., 0].sum(dim=1)
            gaps += (drafted[1:] - likely).abs().tolist()
            _count(head, states, known[-1], branches[1:], truth.argmax(dim=-1), hits)
    return {
        "gap": float(np.mean(gaps)) if gaps else None,
        "hits": {str(depth): float(np.mean(hit)) for depth, hit in sorted(hits.items())},
        "places": sum(len(text.places) for text in texts),
    }


def _hidden(model: Any, layers: Sequence[Any], head: Head, text: Text) -> torch.Tensor:
    """[P, levels, H] states of the slots, by the pass that training uses."""
    tokens = torch.tensor([text.tokens])
    with Capture(layers, head.config.taps) as capture:
        final = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        taps = capture.taken()
    whole = Written(tokens[0].to(torch.int32), 1, taps[0, :-1], final[0, :-1])
    batch = batch_at([whole], [text.places], head.config.block, head.config.causal)
    return slot_states(head, batch)[0]


def _scores(
    head: Head, states: torch.Tensor, anchor: int, paths: torch.Tensor, level: int
) -> torch.Tensor:
    """[B, V] log-probabilities of what follows paths [B, level] below the anchor."""
    ids = torch.cat([torch.full((len(paths), 1), anchor), paths], dim=1)
    state = head.corrector.states(ids, head.embed(ids).float())[:, -1]
    hidden = states[level].expand(len(paths), -1)
    found: torch.Tensor = head.logits(hidden, state).float().log_softmax(dim=-1)
    return found


def _best(head: Head, states: torch.Tensor, anchor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[BRANCHES, DEPTH] target ids of the likeliest branches, best first, and [BRANCHES] log q."""
    paths, value = torch.zeros(1, 0, dtype=torch.long), torch.zeros(1)
    for level in range(min(DEPTH, len(states))):
        logq = _scores(head, states, anchor, paths, level)
        logq, child = logq.topk(min(BEAM, logq.shape[1]), dim=-1)
        total = (value[:, None] + logq).flatten()
        value, picked = total.topk(min(BEAM, len(total)))
        above = paths[picked // child.shape[1]]
        fresh = head.target_ids(child.flatten()[picked])
        paths = torch.cat([above, fresh[:, None]], dim=1)
    return paths[:BRANCHES], value[:BRANCHES]


def _truth(model: Any, known: Sequence[int], branches: torch.Tensor) -> torch.Tensor:
    """[B, D + 1, vocabulary] the target's log-probabilities after the known text and every node."""
    levels = branches.shape[1]
    rows = torch.cat([torch.tensor(known).expand(len(branches), -1), branches], dim=1)
    found = model(input_ids=rows, use_cache=False, logits_to_keep=levels + 1).logits
    truth: torch.Tensor = found.float().log_softmax(dim=-1)
    return truth


def _count(
    head: Head,
    states: torch.Tensor,
    anchor: int,
    branches: torch.Tensor,
    wanted: torch.Tensor,
    hits: dict[int, list[bool]],
) -> None:
    """Note for every node, once, whether its best child is the target's choice.

    Args:
        branches: [B, D]. wanted: [B, D + 1] what the target says after every node, anchor first.
    """
    seen: set[tuple[int, ...]] = set()
    for depth in range(1, min(branches.shape[1] + 1, len(states))):
        best = _scores(head, states, anchor, branches[:, :depth], depth).argmax(dim=-1)
        guess = head.target_ids(best)
        for row, path in enumerate(branches[:, :depth].tolist()):
            if tuple(path) not in seen:
                seen.add(tuple(path))
                hits[depth].append(bool(guess[row] == wanted[row, depth]))
