"""Quick start: the same text in fewer forwards.

Run: python examples/quickstart.py [MODEL]

MODEL is a catalogue name (fetched on first use), a local Hugging Face folder or a hub id.
"""

import sys

from adaptive_spec import AdaptiveDecoder
from adaptive_spec.models import load
from adaptive_spec.prompts import encode


def main(name: str = "smollm2-135m", max_new_tokens: int = 64) -> None:
    model, tokenizer = load(name, "float32")
    prompt = encode(tokenizer, "Repeat this list, sorted: pear, fig, apple, plum.")

    decoder = AdaptiveDecoder(model)  # the default preset
    ours = decoder.generate(prompt, max_new_tokens=max_new_tokens, do_sample=False)
    plain = model.generate(prompt, max_new_tokens=max_new_tokens, do_sample=False)

    print(tokenizer.decode(ours[0, prompt.shape[1] :], skip_special_tokens=True))
    print("identical to model.generate:", ours.tolist() == plain.tolist())


if __name__ == "__main__":
    main(*sys.argv[1:])
