"""A policy of one's own: a budget that follows how much of the last drafts was accepted.

Run: python examples/own_controller.py [MODEL]

It never raises and never answers nonsense, so it passes the contract suite; and whatever it
decides, the text stays the same.
"""

import sys

from adaptive_spec import AdaptiveDecoder
from adaptive_spec.controllers.registry import CONTROLLERS
from adaptive_spec.models import load
from adaptive_spec.prompts import encode
from adaptive_spec.types import Decision, Plan


class Follow:
    """Twice the recent acceptance, plus a little; registered as ``follow``."""

    def __init__(self, argument=None):
        self.recent = {}

    def plan(self, requests, latency):
        return [Plan(nodes=32, depth=16) for _ in requests]

    def cut(self, offers, latency):
        decisions = []
        for offer in offers:
            recent = self.recent.get(offer.features.request, 2.0)
            size = min(offer.largest, round(2 * recent) + 2)
            decisions.append(Decision(size, f"follow: {recent:.1f} accepted lately"))
        return decisions

    def observe(self, outcomes):
        for outcome in outcomes:
            name = outcome.features.request
            self.recent[name] = 0.8 * self.recent.get(name, 2.0) + 0.2 * outcome.accepted

    def finish(self, request):
        self.recent.pop(request, None)


CONTROLLERS.register("follow", Follow, "follow: twice the recent acceptance.")


def main(name="smollm2-135m", max_new_tokens=48):
    model, tokenizer = load(name, "float32")
    prompt = encode(tokenizer, "Spell 'banana' five times.")
    decoder = AdaptiveDecoder(model, {"policy": "follow"})
    with decoder.start(prompt, max_new_tokens=max_new_tokens, do_sample=False) as session:
        sizes = [session.stats.num_draft_tokens for _ in session]
    print("draft tokens so far, step by step:", sizes)


if __name__ == "__main__":
    main(*sys.argv[1:])
