"""Who takes part: policies x drafters x varied config values, and Hugging Face's own decoding.

``plain`` takes part in any case, once: it is what speed-ups refer to and what texts are compared
with. It drafts nothing, so it gets a drafter that keeps nothing, and is as fast as this code can
decode without speculation, whatever drafters the others use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from adaptive_spec.bench.settings import BenchSettings, unknown
from adaptive_spec.build import find_drafters, settle
from adaptive_spec.config import Config, LogSection, load_config
from adaptive_spec.controllers.registry import CONTROLLERS
from adaptive_spec.drafters.base import CandidateTree, Committed, DraftRequest
from adaptive_spec.errors import ArgumentError
from adaptive_spec.online.policies import find_rule
from adaptive_spec.options import about, layered, origin
from adaptive_spec.types import Plan

PLAIN = "plain"
PEERS = ("hf", "hf-prompt-lookup:N")
BEST = "best:"
"""Before the name of a family of contestants: ``best:fixed`` is the best fixed budget."""
PLAIN_VARIES = ("kernels",)
"""What changes plain decoding as well."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """One of ours (``config`` is set) or one of Hugging Face's ways to generate (it is not)."""

    name: str
    policy: str | None = None
    drafter: str | None = None
    config: Config | None = None
    lookup: int | None = None
    """Of a peer: tokens that prompt lookup drafts; None for plain ``generate``."""

    @property
    def family(self) -> str:
        """The policy or peer without its argument."""
        return (self.policy or self.name).partition(":")[0]


class NoDrafter:
    """The drafter of ``plain``: proposes nothing, remembers nothing."""

    name = "none"
    taps: tuple[int, ...] = ()
    reads_noise = False
    has_model = False

    def start(self, request: DraftRequest) -> None: ...

    def propose(
        self, requests: Sequence[DraftRequest], plans: Sequence[Plan]
    ) -> list[CandidateTree]:
        return [CandidateTree.empty() for _ in requests]

    def commit(self, requests: Sequence[DraftRequest], news: Sequence[Committed]) -> None: ...

    def finish(self, request: DraftRequest) -> None: ...


def contestants(settings: BenchSettings) -> list[Contestant]:
    """All contestants, ``plain`` first; every name is checked before a model is loaded.

    Raises:
        UnknownNameError, ConfigError, UnsupportedError: a policy, drafter or config that is none.
        ArgumentError: a peer or the baseline that is none, or a bad argument of a policy.
    """
    base = layered(settings.config, settings.overrides)
    found = [Contestant(PLAIN, PLAIN, None, _without_log(base, PLAIN, base.drafter))]
    policies = settings.policies or (base.policy,)
    drafters = settings.drafters or (base.drafter,)
    plain_varies = any(vary.key in PLAIN_VARIES for vary in settings.vary)
    factors = [[f"{vary.key}={value}" for value in vary.values] for vary in settings.vary]
    _check_keys(settings, base)
    _check_names(settings, base)
    for policy, drafter, varied in product(policies, drafters, product(*factors)):
        config = load_config(base, varied)
        find_rule(config.online.updates)
        name = f"{policy}/{drafter}" if len(drafters) > 1 else policy
        name += f"[{','.join(varied)}]" if varied else ""
        config = _without_log(config, policy, drafter)
        if policy != PLAIN or plain_varies:
            found.append(Contestant(name, policy, drafter, config))
    found.extend(_peer(name) for name in settings.peers)
    if settings.baseline is not None and not baseline(settings.baseline, found):
        families = dict.fromkeys(f"{BEST}{one.family}" for one in found)
        raise unknown("--baseline", settings.baseline, [*(one.name for one in found), *families])
    return found


def baseline(name: str, found: Sequence[Contestant]) -> list[str]:
    """Names of the contestants that a baseline stands for: one, or ``best:`` a family."""
    if name.startswith(BEST):
        return [one.name for one in found if one.family == name.removeprefix(BEST)]
    return [one.name for one in found if one.name == name]


def settled(found: Sequence[Contestant], model: Any) -> list[Contestant]:
    """The same, with the drafter that ``auto`` stands for on ``model``."""
    done = []
    for one in found:
        if one.config is not None:
            config = settle(one.config, model)
            one = replace(one, config=config, drafter=one.drafter and config.drafter)
        done.append(one)
    return done


def _without_log(config: Config, policy: str, drafter: str) -> Config:
    """``config`` for one contestant; the benchmark opens one log for all."""
    log = LogSection(detail=config.log.detail, text=config.log.text)
    return config.model_copy(update={"policy": policy, "drafter": drafter, "log": log})


def _check_keys(settings: BenchSettings, base: Config) -> None:
    """Raise ArgumentError for keys that come twice, or that the benchmark keeps for itself."""
    keys = [vary.key for vary in settings.vary]
    for key in keys:
        if keys.count(key) > 1:
            raise ArgumentError("--vary", key, "every key may vary once")
    for vary in settings.vary:
        for value in vary.values:
            with about("--vary", text := f"{vary.key}={value}"):
                load_config(base, [text])
    if base.log.path is not None:
        with about(*_origin(settings, "log.path")):
            raise ArgumentError("log.path", base.log.path, "the benchmark keeps the log itself")


def _check_names(settings: BenchSettings, base: Config) -> None:
    """Look every policy and drafter up; an error names the option that brought it."""
    for policy in settings.policies or (None,):
        with about(*_origin(settings, "policy", "--policies", policy)):
            entry, argument = CONTROLLERS.find(base.policy if policy is None else policy)
            entry.factory(argument)
    for drafter in settings.drafters or (None,):
        with about(*_origin(settings, "drafter", "--drafters", drafter)):
            find_drafters(base.model_copy(update={"drafter": drafter or base.drafter}))
    with about(*_origin(settings, "online.updates")):
        find_rule(base.online.updates)


def _origin(
    settings: BenchSettings, key: str, flag: str = "", value: str | None = None
) -> tuple[str, str | None]:
    return origin(key, flag, value, settings.config, settings.overrides)


def _peer(name: str) -> Contestant:
    if name == "hf":
        return Contestant(name)
    kind, _, count = name.partition(":")
    if kind != "hf-prompt-lookup":
        raise unknown("--peers", name, PEERS)
    if not (count.isascii() and count.isdigit() and int(count) >= 1):
        raise ArgumentError("--peers", name, "hf-prompt-lookup:N drafts N tokens, 1 or more")
    return Contestant(name, lookup=int(count))
