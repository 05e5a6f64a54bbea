"""May this model draft for that target? Only if a token id means the same to both.

A draft model proposes ids, and the target reads them with its own vocabulary. With another token
map the text would still be exact, but hardly a draft would be accepted, so such pairs are refused.
What may differ: the size (a smaller draft vocabulary, or padding rows behind the tokenizer's last
id on either side), and tokens that only one of the two knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from adaptive_spec.errors import UnsupportedError

_WITHOUT = "drafter='suffix', which needs no model"
SHOWN = 3
"""Conflicts that an error message names."""


class HasVocab(Protocol):
    """What is needed of a tokenizer; those of transformers have it."""

    def get_vocab(self) -> Mapping[str, int]:
        """Token -> id, added tokens included."""
        ...


def check_pairing(
    target_tokenizer: HasVocab | None,
    draft_tokenizer: HasVocab | None,
    target_vocab: int,
    draft_vocab: int,
) -> None:
    """Raise unless the draft model speaks the target's token ids.

    Where one of the tokenizers is missing nothing can be compared, and models of the same size are
    taken for a pair: a wrong one costs drafts, never the text.

    Args:
        target_tokenizer, draft_tokenizer: their tokenizers; None where there is none.
        target_vocab, draft_vocab: rows of the models' output embeddings.

    Raises:
        UnsupportedError: the maps contradict each other, naming the first tokens; or there is no
            map to compare and the sizes differ.
    """
    if target_tokenizer is None or draft_tokenizer is None:
        if target_vocab != draft_vocab:
            raise UnsupportedError(
                f"draft model: {draft_vocab} tokens, the target has {target_vocab}, and without "
                "both tokenizers their token maps cannot be compared; give both models with "
                f"their tokenizers, or another draft model, or {_WITHOUT}"
            )
        return
    found = conflicts(target_tokenizer.get_vocab(), draft_tokenizer.get_vocab())
    if found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UnsupportedError(
            f"draft model: its token map is not the target's: {'; '.join(found[:SHOWN])}{more}. "
            f"Use a draft model of the target's own family, or {_WITHOUT}"
        )


def conflicts(target: Mapping[str, int], draft: Mapping[str, int]) -> list[str]:
    """What two token maps disagree on, in words, by rising target id.

    A token with two ids, or an id with two tokens that the respective other map does not know.
    """
    found = [
        (ours, f"{token!r} is {ours} for the target, {draft[token]} for the draft model")
        for token, ours in target.items()
        if draft.get(token, ours) != ours
    ]
    named = {place: token for token, place in draft.items() if token not in target}
    found += [
        (place, f"{place} is {token!r} for the target, {named[place]!r} for the draft model")
        for token, place in target.items()
        if token not in draft and place in named
    ]
    return [words for _, words in sorted(found)]
