"""Drafters by name; ``a+b`` names several, whose trees are merged into one.

A factory is called as ``factory(argument, **options)``: the text after the colon, the fields of the
config section of that name, and, for whoever wants them, ``coupled`` (whether drafts should read
the keyed noise) and ``context`` (a ``DraftContext``). It ignores options that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

from adaptive_spec.drafters.base import Drafter
from adaptive_spec.errors import ArgumentError
from adaptive_spec.registry import Registry

DRAFTERS: Registry[Drafter] = Registry("drafter", "adaptive_spec.drafters")


@dataclass(frozen=True, slots=True)
class DraftContext:
    """What a drafter may need of the decoder that it drafts for."""

    target: Any
    """The target's Hugging Face model."""
    load: Callable[[str], tuple[Any, Any]]
    """Name, folder or hub id -> model and tokenizer, in the target's dtype and on its device."""
    tokenizer: Callable[[], Any]
    """The target's tokenizer, or None where it has none to be found."""
    kernels: bool = True
    """Triton kernels may be used where they can run."""


def _suffix(argument: str | None, coupled: bool = True, **options: Any) -> Drafter:
    module = import_module("adaptive_spec.drafters.suffix")
    known = {name: options[name] for name in ("floor",) if name in options}
    return cast(Drafter, module.SuffixDrafter(argument, coupled=coupled, **known))


def _recall(argument: str | None, coupled: bool = True, **options: Any) -> Drafter:
    module = import_module("adaptive_spec.drafters.recall")
    known = {name: options[name] for name in ("floor", "tokens") if name in options}
    return cast(Drafter, module.RecallDrafter(argument, coupled=coupled, **known))


def _draft_model(
    argument: str | None, context: DraftContext, coupled: bool = True, **options: Any
) -> Drafter:
    if argument is None:
        allowed = "draft_model:NAME takes a catalogue name, a folder or a hub id"
        raise ArgumentError("drafter", "draft_model", allowed)
    module = import_module("adaptive_spec.drafters.draft_model")
    pairing = import_module("adaptive_spec.drafters.pairing")
    model, tokenizer = context.load(argument)
    sizes = [one.get_output_embeddings().weight.shape[0] for one in (context.target, model)]
    pairing.check_pairing(context.tokenizer(), tokenizer, *sizes)
    known = {name: options[name] for name in ("width", "siblings") if name in options}
    drafter = module.DraftModelDrafter(model, coupled=coupled, kernels=context.kernels, **known)
    import_module("adaptive_spec.selfcheck").self_check(drafter.target)
    return cast(Drafter, drafter)


def _causal_parallel(
    argument: str | None, context: DraftContext, coupled: bool = True, **options: Any
) -> Drafter:
    shelf = import_module("adaptive_spec.heads.shelf")
    if argument is None:
        argument = options.get("head") or shelf.made_for(context.target)
    if argument is None:
        allowed = "no head ships for this target; causal_parallel:NAME takes a name of "
        allowed += "`adaptive-spec heads`, a folder or a hub id"
        raise ArgumentError("drafter", "causal_parallel", allowed)
    module = import_module("adaptive_spec.drafters.causal_parallel")
    public = import_module("adaptive_spec.heads.public")
    stored = public.load_any(shelf.find(argument))
    known: dict[str, Any] = {n: options[n] for n in ("width", "siblings") if n in options}
    if context.kernels:
        here = import_module("adaptive_spec.kernels.here")
        known["kernels"] = here.for_device(context.target.device)
    return cast(Drafter, module.for_target(stored, context.target, coupled=coupled, **known))


DRAFTERS.register(
    "suffix",
    _suffix,
    "Looks up what followed the current suffix earlier in prompt and output; needs no training.",
)
DRAFTERS.register(
    "recall",
    _recall,
    "Looks up what followed the current suffix in answers of requests that have ended.",
)
DRAFTERS.register(
    "draft_model",
    _draft_model,
    "draft_model:NAME drafts with a smaller model of the same token map, level by level.",
)
DRAFTERS.register(
    "causal_parallel",
    _causal_parallel,
    "causal_parallel[:HEAD] drafts all depths in one forward of a head trained for the target.",
)
