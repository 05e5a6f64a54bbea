"""A target that changes under a head's feet, and what that does.

Its hidden states are turned in a subspace of ``RANK`` dimensions, by a change of rank ``RANK`` of
every weight that writes or reads them: a new basis, in which the target computes what it did. So it
writes the same texts, and a head that reads its states knows them no more. What acceptance loses is
the head's ignorance alone, all of which could be learned; random changes of the weights make the
target uncertain instead, and no head can make up for that (``docs/decisions.md``).

A pre-norm decoder computes ``x <- x + W_out f(W_in (g * x / rms(x)))``. With ``x' = Q x``, Q
orthogonal, that is ``W_out' = Q W_out`` and ``W_in' = W_in diag(g) Q^T diag(1 / g)``.

Legend: H hidden, V vocabulary, T tokens.
"""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from adaptive_spec.errors import UnsupportedError
from adaptive_spec.model_facts import decoder_layers

RANK = 8
TEXTS, TOKENS = 12, 320
"""Of the perplexity: parts of modules of the standard library."""
PERIODS, LOOP = 48, 48
"""A text runs in circles if its last ``LOOP`` tokens repeat with a period of at most ``PERIODS``,
three times or more."""
READERS = {
    "input_layernorm": ("q_proj", "k_proj", "v_proj"),
    "post_attention_layernorm": ("gate_proj", "up_proj"),
}
WRITERS = ("o_proj", "down_proj")
OFF = 0.1
"""Share of the logits' spread by which a turned target may differ: rounding, in bfloat16."""
WANTED = 0.2, 0.35
"""Share of a head's acceptance length that the turn is to cost."""
STEEPEST, HALVINGS = math.pi / 2, 6


class Drift:
    """The turn, to be put on and taken off. An output layer tied to the embeddings gets weights of
    its own, at once and for good: in the new basis they differ.

    Args:
        model: the target. probes: [T] ids each, of ordinary text.

    Raises:
        UnsupportedError: the target's layers are not those of the formula above.
    """

    def __init__(self, model: Any, probes: Sequence[torch.Tensor], seed: int = 0) -> None:
        self._model, self._probes = model, [one.to(model.device)[None] for one in probes]
        self._embeddings, output = model.get_input_embeddings(), model.get_output_embeddings()
        if output.weight is self._embeddings.weight:
            output.weight = torch.nn.Parameter(output.weight.detach().clone(), requires_grad=False)
        self._readers, self._writers = _weights(model)
        with torch.no_grad():
            self._planes = self._directions(seed)
        self._before: list[tuple[torch.Tensor, torch.Tensor]] = []

    @torch.no_grad()
    def begin(self, angle: float) -> None:
        """Turn by ``angle`` (radians) in every plane; from where it stood at first, not further.

        Raises:
            UnsupportedError: the target then computes something else; it is put back.
        """
        self.end()
        wanted = self._logits()
        turn = _turn(self._planes, angle)
        for gain, weights in self._readers:
            scale = gain.float()
            for weight in weights:
                self._put(weight, ((weight.float() * scale) @ turn.T) / scale)
        for weight in self._writers:
            self._put(weight, turn @ weight.float())
        embeddings = self._embeddings.weight
        self._put(embeddings, embeddings.float() @ turn.T)
        found = self._logits()
        spread = wanted - wanted.mean(dim=-1, keepdim=True)
        if not float((found - wanted).norm()) < OFF * float(spread.norm()):  # NaN as well
            self.end()
            raise _refused(self._model, "another basis changes what the target computes")

    def scale(self, acceptance: Callable[[], float]) -> tuple[float, float, float]:
        """Turn until a head's acceptance length falls by a share within ``WANTED``, as nearly as
        halving the angle's range finds.

        Args:
            acceptance: measures it.

        Returns:
            The angle, and acceptance lengths before and after.
        """
        self.end()
        before = acceptance()
        low, high = 0.0, STEEPEST
        for _ in range(HALVINGS):
            angle = (low + high) / 2.0
            self.begin(angle)
            after = acceptance()
            fall = 1.0 - after / before
            if WANTED[0] <= fall <= WANTED[1]:
                break
            low, high = (angle, high) if fall < WANTED[0] else (low, angle)
        return angle, before, after

    @torch.no_grad()
    def end(self) -> None:
        """Put the weights back, bit for bit."""
        for weight, before in self._before:
            weight.copy_(before)
        self._before.clear()

    def _put(self, weight: torch.Tensor, value: torch.Tensor) -> None:
        self._before.append((weight, weight.detach().clone()))
        weight.copy_(value.to(weight))

    def _logits(self) -> torch.Tensor:
        return torch.cat([self._model(ids).logits[0].float() for ids in self._probes])

    def _directions(self, seed: int) -> torch.Tensor:
        """[H, RANK] orthonormal; columns 2 i and 2 i + 1 span a plane: a principal direction of the
        hidden states and a random one."""
        states = [
            torch.cat(self._model(ids, output_hidden_states=True).hidden_states[1:], dim=1)[0]
            for ids in self._probes
        ]
        rows = torch.nn.functional.normalize(torch.cat(states).float().cpu(), dim=-1)
        _, axes = torch.linalg.eigh(rows.T @ rows)
        main = axes[:, -RANK // 2 :].flip(1)
        luck = torch.Generator().manual_seed(seed)
        others = torch.randn(len(axes), RANK // 2, generator=luck)
        others, _ = torch.linalg.qr(others - main @ (main.T @ others))
        return torch.stack([main, others], dim=2).flatten(1).to(self._model.device)


def _weights(
    model: Any,
) -> tuple[list[tuple[torch.Tensor, list[torch.Tensor]]], list[torch.Tensor]]:
    """Readers of the hidden states, each after the gain of its norm, and writers."""
    readers, writers = [], []
    wanted = {*WRITERS, *(name for names in READERS.values() for name in names)}
    for layer in decoder_layers(model):
        linear = {
            name.rpartition(".")[2]: module
            for name, module in layer.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
        if set(linear) != wanted or any(linear[name].bias is not None for name in WRITERS):
            raise _refused(model, "layers unlike Llama's")
        for norm, names in READERS.items():
            readers.append((getattr(layer, norm).weight, [linear[name].weight for name in names]))
        writers += [linear[name].weight for name in WRITERS]
    readers.append((model.get_decoder().norm.weight, [model.get_output_embeddings().weight]))
    return readers, writers


def _refused(model: Any, why: str) -> UnsupportedError:
    return UnsupportedError(f"stream:target-drift on {model.config.model_type}: {why}")


def _turn(planes: torch.Tensor, angle: float) -> torch.Tensor:
    """[H, H] the rotation by ``angle`` in each of the planes [H, RANK]."""
    first, second = planes[:, ::2], planes[:, 1::2]
    same = first @ first.T + second @ second.T
    across = second @ first.T - first @ second.T
    one = torch.eye(len(planes), device=planes.device)
    return one + (math.cos(angle) - 1.0) * same + math.sin(angle) * across


def ordinary(tokenizer: Any) -> list[torch.Tensor]:
    """Parts of modules of the standard library, [T] ids each."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    found = [
        tokenizer(path.read_text(encoding="utf-8")[2000:4000], return_tensors="pt").input_ids[0]
        for path in paths[:: max(len(paths) // TEXTS, 1)][:TEXTS]
    ]
    return [ids[:TOKENS] for ids in found if len(ids) > 1]


@torch.no_grad()
def perplexity(model: Any, texts: Sequence[torch.Tensor]) -> float:
    """Of texts that the target did not write itself, [T] ids each."""
    total = count = 0.0
    for text in texts:
        ids = text.to(model.device)[None]
        chances = model(ids).logits[0, :-1].float().log_softmax(dim=-1)
        total -= float(chances.gather(1, ids[0, 1:, None]).sum())
        count += ids.shape[1] - 1
    return math.exp(total / max(count, 1.0))


def loop_rate(texts: Sequence[Sequence[int]]) -> float:
    """Share of texts that run in circles at their end."""
    return sum(map(_circles, texts)) / max(len(texts), 1)


def _circles(text: Sequence[int]) -> bool:
    for period in range(1, PERIODS + 1):
        tail = list(text[-max(LOOP, 3 * period) :])
        if len(tail) >= max(LOOP, 3 * period) and tail[period:] == tail[:-period]:
            return True
    return False
