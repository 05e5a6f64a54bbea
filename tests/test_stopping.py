"""When a request ends, and the truth about why: rows S1 to S4 and S6 of the fault table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TextStreamer

from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.testing.drafters import ScriptedDrafter
from adaptive_spec.testing.tiny import CONTEXT, TableLM, tiny_model
from adaptive_spec.testing.yardsticks import check_state, plain, run

PROMPT = [5, 6, 7, 8, 5, 6]
SAMPLE = {"do_sample": True, "temperature": 0.9, "top_k": 0, "seed": 3}


def generate(model: Any, prompt: Sequence[int], **call: Any) -> list[int]:
    return model.generate(torch.tensor([prompt]), **call)[0, len(prompt) :].tolist()


def scripted(model: Any, text: Sequence[int], *pattern: int) -> AdaptiveDecoder:
    """Drafts ``text`` (prompt and output), right for ``pattern`` tokens, with a decoy beside."""
    drafter = ScriptedDrafter(lambda request: text, pattern, decoys=1)
    return AdaptiveDecoder(model, {"policy": "fixed:24"}, drafter=drafter)


def table_model(path: Sequence[int], vocab: int = 320) -> TableLM:
    """A model that says ``path`` (no token twice) after its first token, and goes on in circles."""
    table = torch.zeros(vocab, vocab)
    for here, there in zip(path, [*path[1:], path[0]], strict=True):
        table[here, there] = 9.0
    return TableLM(table)


def bytewise(merges: Sequence[tuple[str, str]] = ()) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: a token per byte, and one per merge."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, *("".join(m) for m in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


# -- S1, S2: end tokens and caps ------------------------------------------------------------------


@pytest.mark.fault("S1")
@pytest.mark.parametrize("how", [{}, SAMPLE], ids=["greedy", "sampled"])
def test_every_token_of_a_known_output_as_end_token(llama: Any, how: dict[str, Any]) -> None:
    known = plain(llama, PROMPT, max_new_tokens=24, **how)
    decoder = scripted(llama, PROMPT + known, 4, 1, 3)
    for end in sorted(set(known)):
        call = {"max_new_tokens": 24, "eos_token_id": end, "pad_token_id": 0}
        with decoder.start(PROMPT, **call, **how) as session:
            tokens = [token for step in session for token in step]
            check_state(session)
        assert tokens == session.generated == known[: known.index(end) + 1]
        assert session.finish_reason == "stop"
        if not how:
            assert tokens == generate(llama, PROMPT, **call)


@pytest.mark.fault("S1")
def test_a_rejected_end_token_has_no_effect(llama: Any) -> None:
    known = plain(llama, PROMPT, max_new_tokens=16)
    end = next(token for token in range(10, 97) if token not in known)
    drafter = ScriptedDrafter(lambda request: [*PROMPT, *([end - 1] * 60)], (0,), decoys=3)
    decoder = AdaptiveDecoder(llama, drafter=drafter)  # every decoy set starts with ``end``
    tokens = run(decoder, PROMPT, max_new_tokens=16, eos_token_id=end, pad_token_id=0)
    assert tokens == known


@pytest.mark.fault("S2")
@pytest.mark.parametrize(
    ("cap", "tokens", "reason"),
    [(5, [10, 11, 2], "stop"), (3, [10, 11, 2], "stop"), (2, [10, 11], "length")],
)
def test_the_earliest_of_cap_and_stop_wins(cap: int, tokens: list[int], reason: str) -> None:
    path = [1, 10, 11, 2, 20, 21, 22]
    decoder = scripted(table_model(path), path, 6)
    with decoder.start([1], max_new_tokens=cap, eos_token_id=2, pad_token_id=0) as session:
        assert session.step() == tokens
        assert session.finish_reason == reason
        decoder.check_integrity()


# -- S3, S6: text ---------------------------------------------------------------------------------

WORDS = ["a", "bc", "d", "efg", "h", "i", "jk", "l", "m", "nop", "q", "r", "st", "u"]
MERGES = [("b", "c"), ("e", "f"), ("ef", "g"), ("j", "k"), ("n", "o"), ("no", "p"), ("s", "t")]


def _stop_strings() -> list[str]:
    """Whole runs of 1 to 4 tokens everywhere, and such that start and end inside of tokens."""
    runs = ["".join(WORDS[i : i + k]) for k in (1, 2, 3, 4) for i in range(1, len(WORDS) - k)]
    return [*runs, "cd", "cdefgh", "fg", "kl", "op", "ghij", "pqrs"]


@pytest.mark.fault("S3")
@pytest.mark.parametrize("block", [(13,), (4,), (1, 2, 0)], ids=str)
def test_stop_strings_across_tokens_and_blocks(block: tuple[int, ...]) -> None:
    tokenizer = bytewise(MERGES)
    path = tokenizer.convert_tokens_to_ids(WORDS)
    model = table_model(path)
    decoder = scripted(model, path * 2, *block)
    for stop in _stop_strings():
        call = {"max_new_tokens": 20, "stop_strings": stop, "tokenizer": tokenizer}
        with decoder.start(path[:1], **call) as session:
            emitted = [token for step in session for token in step]
            decoder.check_integrity()
        text = tokenizer.decode(emitted)
        assert emitted == session.generated, "nothing after the match in the session"
        assert stop in text, "the match is complete"
        assert stop not in tokenizer.decode(emitted[:-1]), "its last token is the last one"
        assert session.finish_reason == "stop"
        if block == (4,):
            assert emitted == plain(model, path[:1], **call) == generate(model, path[:1], **call)


class Collected(TextStreamer):
    """What a console would show."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True)
        self.text, self.ended = "", False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text += text
        self.ended |= stream_end


@pytest.mark.fault("S6")
@pytest.mark.parametrize("cap", range(15))
def test_streaming_text_of_several_bytes(cap: int) -> None:
    tokenizer = bytewise()
    text = "a\U0001f642bécd漢 z"
    path = tokenizer(text).input_ids
    assert len(path) == len(set(path)) == 15
    decoder = scripted(table_model(path), path * 2, 3, 1, 4)
    want = tokenizer.decode(path[1 : cap + 1])
    ids = torch.tensor([path[:1]])
    shown = Collected(tokenizer)
    decoder.generate(ids, max_new_tokens=cap, streamer=shown)
    assert (shown.text, shown.ended) == (want, True)
    shown = Collected(tokenizer)
    with decoder.start(path[:1], max_new_tokens=cap, streamer=shown) as session:
        list(session)
    assert (shown.text, shown.ended) == (want, True)
    if cap:
        shown = Collected(tokenizer)
        decoder.target.model.generate(
            ids, max_new_tokens=cap, custom_generate=decoder.bind(streamer=shown)
        )
        assert (shown.text, shown.ended) == (want, True)


# -- S4: limits -----------------------------------------------------------------------------------


@pytest.mark.fault("S4")
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("spare", [0, 1, 2, 40])
@pytest.mark.parametrize("cap", [0, 1, 3, 30])
def test_neither_cap_nor_context_limit_is_passed(kind: str, spare: int, cap: int) -> None:
    model = tiny_model(kind)
    prompt = [5 + i % 7 for i in range(CONTEXT - spare)]
    known = plain(model, prompt, max_new_tokens=cap)
    decoder = scripted(model, [*prompt, *known, *([9] * 40)], 8)
    written: list[int] = []
    prepare = decoder.target.prepare

    def watched(cache: Any, batch: Any) -> Any:
        written.append(int(batch.positions.max()))
        return prepare(cache, batch)

    decoder.target.prepare = watched  # type: ignore[method-assign]
    with decoder.start(prompt, max_new_tokens=cap) as session:
        list(session)
        check_state(session)
    assert session.generated == known
    assert len(known) == min(cap, spare + 1)
    assert session.finish_reason == "length"
    assert max(written) < CONTEXT
    if 0 < cap <= spare:
        assert known == generate(model, prompt, max_new_tokens=cap)


@pytest.mark.fault("S7", "S3")
def test_a_second_turn_after_a_stop_string() -> None:
    tokenizer = bytewise(MERGES)
    path = tokenizer.convert_tokens_to_ids(WORDS)
    decoder = scripted(table_model(path), path * 3, 5)
    with decoder.start(
        path[:1], max_new_tokens=20, stop_strings="lm", tokenizer=tokenizer
    ) as session:
        list(session)
        assert tokenizer.decode(session.generated) == "bcdefghijklm"
        session.extend(path[:4], max_new_tokens=6)
        list(session)
        decoder.check_integrity()
        assert tokenizer.decode(session.generated) == "hijklm"
        assert session.finish_reason == "stop"
        session.extend(path[:4], max_new_tokens=2)
        list(session)
        assert (session.generated, session.finish_reason) == (path[4:6], "length")
