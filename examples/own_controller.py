"""A policy of one's own: it verifies twice as many drafts as were accepted last, plus two."""

import sys

from adaptive_spec import AdaptiveDecoder
from adaptive_spec.models import load
from adaptive_spec.prompts import encode
from adaptive_spec.types import Decision, Plan


class Follow:
    def __init__(self):
        self.last = {}

    def plan(self, requests, latency):
        return [Plan(nodes=32, depth=16) for _ in requests]

    def cut(self, offers, latency):
        sizes = [min(o.largest, 2 * self.last.get(o.features.request, 1) + 2) for o in offers]
        return [Decision(size, "follow: twice what was accepted last") for size in sizes]

    def observe(self, outcomes):
        for outcome in outcomes:
            self.last[outcome.features.request] = outcome.accepted

    def finish(self, request):
        self.last.pop(request, None)


def main(name="smollm2-135m", max_new_tokens=48):
    model, tokenizer = load(name, "float32")
    decoder = AdaptiveDecoder(model, {"policy": "follow"}, controllers={"follow": Follow()})
    prompt = encode(tokenizer, "Spell 'banana' five times.")
    with decoder.start(prompt, max_new_tokens=max_new_tokens, do_sample=False) as session:
        print("draft tokens so far:", [session.stats.num_draft_tokens for _ in session])


if __name__ == "__main__":
    main(*sys.argv[1:])
