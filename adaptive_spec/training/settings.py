"""Settings of a training run: TOML, strict and frozen, like the decoder's own config."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adaptive_spec.errors import ConfigError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ShapeSection(_Section):
    """The head; what follows from the target is not asked for."""

    layers: int = Field(2, ge=1, le=8)
    block: int = Field(8, ge=1, le=64)
    taps: list[int] | None = Field(None, description="target layers; none spreads five of them")
    draft_vocab: int | None = Field(16384, ge=2, description="most frequent tokens; none: all")
    injection: bool = True
    corrector: str = "recurrent_bias"
    rank: int = Field(128, ge=1, le=4096)
    warm_start: bool = Field(True, description="begin with the target's last layers")


class DataSection(_Section):
    """What is written to learn from."""

    tokens: int = Field(1_000_000, ge=1, description="answer tokens to write in all")
    first_tokens: int = Field(200_000, ge=1, description="answer tokens before training begins")
    most_bytes: int = Field(20_000_000_000, ge=1 << 20, description="bound of the data on disk")
    longest_prompt: int = Field(384, ge=8, description="tokens; longer prompts are left out")
    rows: int = Field(96, ge=1, le=4096, description="prompts of a batch")
    max_new_tokens: int = Field(256, ge=8, le=8192)
    greedy: float = Field(0.7, ge=0, le=1, description="share of batches written greedily")
    temperature: float = Field(0.8, gt=0, le=2, description="of the other batches")
    code: float = Field(0.4, ge=0, le=1, description="shares of the kinds of prompts")
    chat: float = Field(0.5, ge=0, le=1)
    arithmetic: float = Field(0.1, ge=0, le=1)
    seed: int = 0


class LearningSection(_Section):
    """How it is learned."""

    steps: int = Field(6000, ge=1)
    rate: float = Field(2e-3, gt=0, lt=1)
    warmup: int = Field(100, ge=0)
    decay: float = Field(0.01, ge=0, lt=1, description="weight decay")
    clip: float = Field(1.0, gt=0)
    sequences: int = Field(12, ge=1, description="texts of a step")
    anchors: int = Field(32, ge=1, description="blocks of a text")
    base: float = Field(0.3, ge=0, description="weight of the uncorrected distribution")
    token: float = Field(0.1, ge=0, description="weight of the written token")
    reach: float = Field(4.0, gt=0, description="slots over which interest falls by e")
    slots: int = Field(1024, ge=1, description="slots that a step's loss looks at")
    write_every: int = Field(100, ge=1, description="steps between two batches of new text")
    check_every: int = Field(200, ge=1, description="steps between two checkpoints")
    held_out: int = Field(64, ge=1, description="texts that are never learned from")
    seed: int = 0


class TrainingConfig(_Section):
    """Everything about one run."""

    head: ShapeSection = ShapeSection()
    data: DataSection = DataSection()
    learning: LearningSection = LearningSection()


def load_training_config(path: str | Path | None) -> TrainingConfig:
    """Read a TOML file; None for the defaults.

    Raises:
        ConfigError: it cannot be read, a key is unknown, a value out of range.
    """
    if path is None:
        return TrainingConfig()
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        return TrainingConfig.model_validate(values)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"training config {str(path)!r} cannot be read: {error}") from None
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, one['loc']))}={one['input']!r}: {one['msg']}"
            for one in error.errors()
        ]
        raise ConfigError("\n".join(problems)) from None
