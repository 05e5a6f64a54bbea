"""Reading the budget log: what was decided, why, and what came of it.

Run: python examples/read_the_log.py [MODEL]
"""

import sys
import tempfile
from pathlib import Path

from adaptive_spec import AdaptiveDecoder, load_log
from adaptive_spec.models import load
from adaptive_spec.prompts import encode


def main(name: str = "smollm2-135m", max_new_tokens: int = 48) -> None:
    model, tokenizer = load(name, "float32")
    prompt = encode(tokenizer, "Say 'the cat sat on the mat' four times.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "decode.jsonl")
        decoder = AdaptiveDecoder(model, {"policy": "fixed:12", "log": {"path": str(path)}})
        decoder.generate(prompt, max_new_tokens=max_new_tokens, do_sample=False)
        log = load_log(path)

    print("step offered size accepted emitted  ms  reason")
    for step in log.steps:
        milliseconds = 1000 * sum(step["seconds"].values())
        print(
            f"{step['step']:4} {step['offered']:7} {step['size']:4} {len(step['accepted']):8} "
            f"{step['emitted']:7} {milliseconds:4.0f}  {step['reason']}"
        )
    request = log.requests[0]
    print(
        f"{request['new_tokens']} tokens, {request['finish_reason']}, "
        f"{request['mean_acceptance_length']:.2f} tokens per forward"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
