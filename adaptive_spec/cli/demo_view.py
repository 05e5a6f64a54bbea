"""How the demo looks: a live view on a terminal, streamed text elsewhere, the same summary after.

Nothing here knows torch or a model: a race arrives as text, counts and seconds. Green is what came
accepted from the tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

ROOT = -1
GREEN = "green"
TREE_ROWS = 6
_BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(slots=True)
class Lane:
    """One of the two decoders in a race: what it wrote, and what that took."""

    name: str
    size: int
    """Most tokens it may write."""
    seconds: float = 0.0
    """Its own wall seconds: prefill and steps, the other lane and the drawing left out."""
    tokens: list[int] = field(default_factory=list)
    text: Text = field(default_factory=Text)
    accepted: list[int] = field(default_factory=list)
    """Per step: draft tokens accepted."""
    nodes: list[int] = field(default_factory=list)
    """Per step: draft nodes verified."""
    finished: bool = False

    @property
    def rate(self) -> float:
        return len(self.tokens) / self.seconds if self.seconds else 0.0

    @property
    def acceptance_length(self) -> float:
        return len(self.tokens) / max(len(self.accepted), 1)

    @property
    def nodes_per_step(self) -> float:
        return sum(self.nodes) / max(len(self.nodes), 1)


@dataclass(frozen=True, slots=True)
class Tree:
    """A verified tree: parents before children, the words of its nodes, and the accepted ones."""

    parent: Sequence[int]
    words: Sequence[str]
    accepted: Sequence[int]
    bonus: str = ""
    """The model's own token after the accepted ones."""


@dataclass(slots=True)
class Race:
    """One prompt, two lanes."""

    title: str
    prompt: str
    plain: Lane
    speculative: Lane
    tree: Tree | None = None


class View(Protocol):
    """Shows a race: ``begin``, then ``step`` after every step of either lane, then ``end``."""

    def begin(self, race: Race) -> None: ...

    def step(self, race: Race, new: Text) -> None:
        """``new`` is what the speculative lane has just written."""
        ...

    def end(self, race: Race) -> None: ...


class StreamView:
    """For pipes and files: the text as it comes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begin(self, race: Race) -> None:
        _heading(self._console, race)

    def step(self, race: Race, new: Text) -> None:
        self._console.print(new, end="", soft_wrap=True)
        self._console.file.flush()

    def end(self, race: Race) -> None:
        self._console.print()
        _strips(self._console, race)


class LiveView:
    """For terminals: text, tree, strips and bars while they race; then what a file would hold.

    Drawn by hand after a step rather than by a thread, which would run on the racers' time.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None

    def begin(self, race: Race) -> None:
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def step(self, race: Race, new: Text) -> None:
        if self._live is not None:
            self._live.update(self._frame(race), refresh=True)

    def end(self, race: Race) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        _heading(self._console, race)
        self._console.print(race.speculative.text)
        _strips(self._console, race)

    def _frame(self, race: Race) -> Group:
        width = self._console.width - 4
        rows = max(3, min(12, self._console.height - TREE_ROWS - 9))
        wrapped = list(race.speculative.text.wrap(self._console, width))
        shown = wrapped[-rows:] + [Text()] * (rows - len(wrapped))
        tree = draw(race.tree, width) if race.tree else [Text()]
        tree = tree[:TREE_ROWS] + [Text()] * (TREE_ROWS - len(tree))
        return Group(
            Panel(Group(*shown), title=race.title, title_align="left", border_style="dim"),
            _caption(race.tree),
            *tree,
            *_strip_lines(race.speculative, width),
            _bars(race, width),
        )


def view_for(console: Console) -> View:
    """The live view where the console is a terminal with room for it."""
    roomy = console.width >= 60 and console.height >= 20
    return LiveView(console) if console.is_terminal and roomy else StreamView(console)


def draw(tree: Tree, width: int) -> list[Text]:
    """The tree lying on its side: one line per branch, the accepted path first and in green."""
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(tree.parent):
        children.setdefault(parent, []).append(node)
    good = set(tree.accepted)
    lines: list[Text] = []

    def grow(node: int, line: Text) -> None:
        column = line.cell_len
        heads = sorted(children.get(node, []), key=lambda child: child not in good)
        for place, child in enumerate(heads):
            if place:
                line = Text(" " * column)
                lines.append(line)
            line.append("└" if place else "─", style="dim")
            line.append(
                visible(tree.words[child]), style=f"bold {GREEN}" if child in good else "dim"
            )
            grow(child, line)

    lines.append(Text("●"))
    grow(ROOT, lines[0])
    for line in lines:
        line.truncate(width, overflow="ellipsis")
        line.no_wrap = True
    return lines


def strip(counts: Sequence[int]) -> str:
    """One character per step: a dot for none, else a block that is full from 15 on."""
    return "".join(_BLOCKS[min((n - 1) // 2, 7)] if n else "·" for n in counts)


def visible(word: str) -> str:
    """A token as something to look at: blanks and line ends get a sign."""
    shown = word.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c if c.isprintable() else "�" for c in shown)


def _heading(console: Console, race: Race) -> None:
    console.rule(f"[bold]{race.title}", align="left", style="dim")
    console.print(race.prompt.partition("\n")[0], style="cyan", markup=False)


def _caption(tree: Tree | None) -> Text:
    if tree is None:
        return Text("waiting for the first tree", style="dim")
    if not tree.parent:
        return Text("no tree: nothing like this was written before", style="dim")
    return Text.assemble(
        (f"{len(tree.parent)} nodes checked in one forward, ", "bold"),
        (f"{len(tree.accepted)} accepted", GREEN),
        f"; then the model's own {visible(tree.bonus)}",
    )


def _strip_lines(lane: Lane, width: int) -> list[Text]:
    room = max(width - 20, 10)
    return [
        Text.assemble("accepted per step   ", (strip(lane.accepted[-room:]), GREEN)),
        Text.assemble("checked per step    ", (strip(lane.nodes[-room:]), "dim")),
    ]


def _strips(console: Console, race: Race) -> None:
    console.print()
    for line in _strip_lines(race.speculative, console.width):
        console.print(line)
    for lane in (race.speculative, race.plain):
        console.print(
            f"{lane.name:<12}{len(lane.tokens):>4} tokens in {len(lane.accepted):>3} steps, "
            f"{lane.seconds:5.1f} s, {lane.rate:5.1f} tokens/s",
            style="dim",
        )
    console.print()


def _bars(race: Race, width: int) -> Table:
    grid = Table.grid(padding=(0, 1))
    for lane, style in ((race.speculative, GREEN), (race.plain, "white")):
        done = len(lane.tokens)
        total = max(done, 1) if lane.finished else lane.size
        grid.add_row(
            Text(lane.name, style=style),
            ProgressBar(total=total, completed=done, width=max(width - 40, 10)),
            Text(f"{done:>4} tokens"),
            Text(f"{lane.rate:5.1f} tokens/s", style="bold" if lane.finished else ""),
        )
    return grid
