"""A hand-written loop: two requests packed into one forward per step, one of them in two turns.

Run: python examples/own_loop.py [MODEL]
"""

import sys

from adaptive_spec import AdaptiveDecoder
from adaptive_spec.models import load
from adaptive_spec.prompts import encode


def main(name: str = "smollm2-135m", max_new_tokens: int = 32) -> None:
    model, tokenizer = load(name, "float32")
    decoder = AdaptiveDecoder(model)
    questions = ("Count from one to twenty.", "Name three colours, then name them again.")
    sessions = [
        decoder.start(encode(tokenizer, text), max_new_tokens=max_new_tokens, do_sample=False)
        for text in questions
    ]

    while live := [session for session in sessions if not session.finished]:
        decoder.step(live)  # one forward for all of them
        decoder.check_integrity()  # every slot is owned once or free

    first = sessions[0]
    first.extend(encode(tokenizer, "And backwards?"), max_new_tokens=max_new_tokens)
    first.set_policy("plain")  # the text does not depend on the policy
    for tokens in first:
        print(tokenizer.decode(tokens), end="", flush=True)
    print()

    for session in sessions:
        print(session.finish_reason, session.stats.as_dict()["mean_acceptance_length"])
        session.close()  # gives the slots back


if __name__ == "__main__":
    main(*sys.argv[1:])
