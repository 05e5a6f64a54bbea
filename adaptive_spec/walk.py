"""Sample and walk: the verification rule, exact for any tree and any temperature.

At every visited node the target's own token for that position is drawn. If a child carries it the
walk goes there, otherwise the token is emitted as the bonus token and the walk ends. What is
emitted is therefore what plain decoding would have emitted: the tree only decides how many of the
draws one forward can serve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.tree import child
from adaptive_spec.types import ROOT


def walk(tree: CandidateTree, choose: Callable[[int], int]) -> Iterator[tuple[int, int]]:
    """Yield (node, token): the visited node, ROOT first, and the token drawn there.

    ``choose(node)`` draws the target's token after ``node``. It is called for visited nodes only,
    in order, and no further than the consumer iterates, so stateful processors see what they
    would see in plain decoding.
    """
    node: int | None = ROOT
    while node is not None:
        token = choose(node)
        yield node, token
        node = child(tree, node, token)
