"""Tiny random targets: real architectures, a few thousand weights, no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

VOCAB, CONTEXT, WINDOW = 97, 256, 8
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
"""A wide initialisation, so that the context, and not only the last token, decides the logits."""
_EXPERTS = {"num_experts_per_tok": 2}
_QWEN3_MOE = {"head_dim": 8, "num_experts": 4, "moe_intermediate_size": 16, **_EXPERTS}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": WINDOW}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
    "qwen3_sliding": (
        "Qwen3Config",
        {
            "head_dim": 8,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 1,
        },
    ),
    "qwen3_moe": ("Qwen3MoeConfig", _QWEN3_MOE),
    "qwen3_moe_sliding": (
        "Qwen3MoeConfig",
        {**_QWEN3_MOE, "use_sliding_window": True, "sliding_window": WINDOW},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "head_dim": 8,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 8,
            "tie_word_embeddings": False,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
    ),
    "gpt2": ("GPT2Config", {}),
    "mixtral": ("MixtralConfig", {"sliding_window": WINDOW, "num_local_experts": 4, **_EXPERTS}),
    "phi3": ("Phi3Config", {"sliding_window": WINDOW}),
}
"""Name -> (config class of transformers, what differs from the common sizes)."""


def tiny_model(
    kind: str = "llama", *, seed: int = 0, attention: str = "sdpa", **changes: Any
) -> Any:
    """A random causal language model in eval mode; the same weights for the same arguments.

    Args:
        kind: a key of ``KINDS``.
        attention: ``sdpa`` or ``eager``.
        changes: further config fields.
    """
    name, extra = KINDS[kind]
    config = getattr(transformers, name)(**{**_SIZES, **extra, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    model.generation_config.eos_token_id = None
    return model.eval()


class TableConfig(transformers.PretrainedConfig):  # type: ignore[misc]
    """Config of ``TableLM``."""

    model_type = "table"


class TableLM(transformers.PreTrainedModel, transformers.GenerationMixin):  # type: ignore[misc]
    """A language model with chosen logits: ``logits(next | last) = table[last]``.

    Args:
        table: [V, V] logits.
    """

    config_class = TableConfig
    _supports_sdpa = True

    def __init__(self, table: torch.Tensor) -> None:
        size = len(table)
        config = TableConfig(
            vocab_size=size,
            hidden_size=1,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=4096,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
        config._attn_implementation = "sdpa"
        super().__init__(config)
        self.layers = nn.ModuleList([nn.Identity()])
        self.table = nn.Embedding(size, size, _weight=table.clone(), _freeze=True)
        self.eval()

    def get_output_embeddings(self) -> nn.Embedding:
        return self.table

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        logits = self.layers[0](self.table(input_ids))
        if past_key_values is not None:
            blank = logits.new_zeros(len(input_ids), 1, input_ids.shape[1], 1)
            past_key_values.update(blank, blank, 0)
        kept = logits[:, -logits_to_keep:] if logits_to_keep else logits
        return CausalLMOutputWithPast(logits=kept, past_key_values=past_key_values)


CHAT = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant] "


def save_tiny(folder: str | Path, seed: int = 0) -> str:
    """Save a random Llama over the 256 bytes, with its tokenizer and chat template, to a folder.

    What needs a model *name* (command line, examples, benchmarks) can be tested with it.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<end>", pad_token="<pad>", chat_template=CHAT
    ).save_pretrained(folder)
    model = tiny_model(
        seed=seed,
        vocab_size=258,
        eos_token_id=256,
        pad_token_id=257,
        bos_token_id=None,
        max_position_embeddings=512,
        num_hidden_layers=2,
    )
    model.save_pretrained(folder)
    return str(folder)
