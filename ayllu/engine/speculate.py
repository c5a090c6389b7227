"""Speculation: several tokens are proposed and checked in one step (Leviathan et al. 2023; Chen et al. 2023).

Every random number belongs to a place in the text, not to a step, so that checking is simple and exact: at
each proposed place the token is sampled that would have been sampled there anyway, and proposals count as far
as they are that token. Greedy or not, the text is the same as without.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Protocol

from ayllu.engine.request import Sampled, Sequence


class Proposer(Protocol):
    """Guesses how a sequence goes on."""

    def propose(self, sequence: Sequence) -> list[int]:
        """Token ids that may follow, best none when unsure; those beyond the sequence's limit are cut."""
        ...


def accepted(drafts: Many[int], sampled: Many[Sampled]) -> list[Sampled]:
    """The new tokens: `sampled[i]` was chosen after `drafts[:i]`, which holds as long as all before it were
    chosen, too. There is always at least one."""
    count = 0
    while count < len(drafts) and sampled[count].token == drafts[count]:
        count += 1
    return list(sampled[: count + 1])
