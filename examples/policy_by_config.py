"""Choosing a policy by config: a preset, overrides, a TOML file. The text stays the same.

Run: python examples/policy_by_config.py [MODEL]
"""

import sys
import tempfile
from pathlib import Path

from adaptive_spec import AdaptiveDecoder
from adaptive_spec.config import load_config
from adaptive_spec.models import load
from adaptive_spec.prompts import encode

TOML = """
policy = "fixed:8"
drafter = "suffix"

[tree]
max_depth = 6
"""


def main(name: str = "smollm2-135m", max_new_tokens: int = 32) -> None:
    model, tokenizer = load(name, "float32")
    prompt = encode(tokenizer, "Write the numbers 1 to 10, one per line, twice.")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "mine.toml")
        file.write_text(TOML)
        configs = {
            "preset": load_config("plain"),
            "override": load_config("default", ["policy=fixed:4"]),
            "file": load_config(file),
        }
    texts = set()
    for title, config in configs.items():
        decoder = AdaptiveDecoder(model, config)
        with decoder.start(prompt, max_new_tokens=max_new_tokens, do_sample=False) as session:
            texts.add(tuple(token for tokens in session for token in tokens))
            print(f"{title:9} {config.policy:8} {session.stats.steps} forwards")
    print("same text:", len(texts) == 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
