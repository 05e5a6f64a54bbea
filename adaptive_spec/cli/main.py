"""The entry point ``adaptive-spec``: commands, and what becomes of errors.

Exit codes: 0 ok; 1 the work failed (a fetch, the target model, a text that differs); 2 bad usage;
130 interrupted. An expected error is one clean line that names the option, its value and what is
allowed; a traceback is only ever shown for a bug of ours.
"""

from __future__ import annotations

import io
import math
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from adaptive_spec import __version__
from adaptive_spec.arguments import check_values
from adaptive_spec.bench.settings import BenchSettings
from adaptive_spec.cli.bench import bench
from adaptive_spec.cli.bench_gpu import bench_gpu
from adaptive_spec.cli.calibrate import calibrate
from adaptive_spec.cli.catalogue import models, policies
from adaptive_spec.cli.demo import check_size, demo
from adaptive_spec.cli.generate import ANY_VOCAB, check_machine, generate
from adaptive_spec.cli.heads import check_sizes, heads
from adaptive_spec.cli.inspect import inspect
from adaptive_spec.cli.train import train
from adaptive_spec.errors import (
    AdaptiveSpecError,
    ArgumentError,
    CacheError,
    CatalogueError,
    DecodingError,
    SamplingError,
    TrainingError,
)
from adaptive_spec.models import DTYPES

FAILURES = (CatalogueError, DecodingError, CacheError, SamplingError, TrainingError)
"""Errors that are no mistake in the command: exit code 1."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Faster generation with Hugging Face models, token for token the same.",
)
app.command()(demo)
app.command()(generate)
app.command()(bench)
app.command()(inspect)
app.command()(calibrate)
app.command()(train)
app.add_typer(models, name="models")
app.add_typer(heads, name="heads")
app.command()(policies)
app.command("bench-gpu")(bench_gpu)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"adaptive-spec {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that stand before any command."""


def main() -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code."""
    _settle_streams()
    try:
        return int(app(list(arguments), prog_name="adaptive-spec", standalone_mode=False) or 0)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted", 130)
    except BrokenPipeError:  # `... | head`: nobody is listening any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except AdaptiveSpecError as error:
        if isinstance(error, FAILURES):
            return _say(str(error), 1)
        return _say(_message(error, arguments), 2)
    except Exception as error:
        if not hasattr(error, "format_message"):  # the parser's own errors have it
            raise
        if not arguments:  # the help, which the parser raises
            sys.stdout.write(f"{error.format_message()}\n")
            return 2
        return _say(_usage(error, arguments), 2)


def _settle_streams() -> None:
    """Model text on a terminal that cannot show it, and library chatter, must not end a run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"


def _message(error: AdaptiveSpecError, arguments: Sequence[str]) -> str:
    """The error in the words of the command line, where it is about an option that was typed."""
    if isinstance(error, ArgumentError):
        flag = "--" + error.field.removeprefix("--").replace("_", "-")
        name = flag.partition(" ")[0]
        if any(argument.partition("=")[0] == name for argument in arguments):
            return f"{flag} {error.value}: {error.allowed}"
    if error.option is None:
        return str(error)
    flag, value = error.option
    return f"{flag} {value}: {error.allowed if isinstance(error, ArgumentError) else error}"


def _usage(error: Any, arguments: Sequence[str]) -> str:
    """An error of the option parser, in the form of our own: flag, value, what is allowed."""
    message = str(error.format_message()).rstrip(".")
    parameter: Any = getattr(error, "param", None)
    for flag in getattr(parameter, "opts", []):
        value = _typed(flag, arguments)
        if value is not None:
            allowed = _range(arguments[0], str(parameter.name)) or message.partition(": ")[2]
            return f"{flag} {value}: {allowed}"
    return message


def _typed(flag: str, arguments: Sequence[str]) -> str | None:
    """The value that stands behind a flag."""
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == flag:
            return value if equals else next(iter(arguments[place + 1 :]), None)
    return None


def _range(command: str, name: str) -> str | None:
    """The range of an option whose value was no number at all."""
    values: dict[str, Any] = {name: math.nan}  # in no range, so the error tells the range
    try:
        if command == "bench":
            BenchSettings("", **values)
        elif command == "demo":
            check_size(**values)
        else:
            check_machine(DTYPES[0], values.get("threads"))
            if command == "heads":
                check_sizes(**{k: v for k, v in values.items() if k != "threads"})
            check_values(values, ANY_VOCAB)
    except ArgumentError as error:
        return error.allowed
    return None


def _say(message: str, code: int) -> int:
    sys.stdout.flush()
    sys.stderr.write(f"error: {message}\n")
    return code
