"""A bound on thinking: an automaton beside each sequence that opens, holds and closes it.

A reasoning model thinks between two control tokens. Left alone it may think for ever, or not at all.
Cutting it off in the middle of a sentence by writing its name for the end as text doesn't work: the model
knows only the control token itself. So the end comes in two steps. From `soft` tokens on the thinking ends
where the model was about to end it anyway (the control token is among the likeliest few), at `maximum` the
control token is put in whatever the model wanted (budget forcing, Muennighoff et al. 2025, "s1", section
3.1, has the hard form of both bounds).

    BEFORE --open--> THINKING --close--> AFTER         BEFORE --any other token--> AFTER

A sequence thinks at its beginning or not at all, and once: so `maximum` is a bound on all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto

from ayllu.engine.request import ThinkingBudget

# The soft close comes where the control token is among so many likeliest ones.
CLOSE_RANK = 5


class Phase(Enum):
    """Where a sequence stands."""

    BEFORE = auto()
    THINKING = auto()
    AFTER = auto()


@dataclass(frozen=True)
class Thinking:
    """A sequence's place in its budget. Immutable, so that drafted tokens can be tried and dropped.

    `count`: tokens thought so far, the control tokens not among them.
    """

    budget: ThinkingBudget
    phase: Phase
    count: int = 0

    @classmethod
    def begin(cls, budget: ThinkingBudget) -> Thinking:
        """The place before the first token."""
        return cls(budget, Phase.THINKING if budget.opened else Phase.BEFORE)

    def after(self, token: int) -> Thinking:
        """The place after one more token."""
        if self.phase is Phase.THINKING:
            if token == self.budget.close_id:
                return replace(self, phase=Phase.AFTER)
            return replace(self, count=self.count + 1)
        if self.phase is Phase.BEFORE:
            return replace(self, phase=Phase.THINKING if token == self.budget.open_id else Phase.AFTER)
        return self

    def belongs(self, token: int) -> bool:
        """Whether `token`, coming next, is part of the thinking (its control tokens included)."""
        if self.phase is Phase.BEFORE:
            return token == self.budget.open_id
        return self.phase is Phase.THINKING

    @property
    def inside(self) -> bool:
        """Whether the sequence is thinking."""
        return self.phase is Phase.THINKING

    @property
    def may_open(self) -> bool:
        """Whether the next token may begin the thinking."""
        return self.phase is Phase.BEFORE and self.budget.maximum != 0

    @property
    def held(self) -> bool:
        """Whether the thinking is too short to end yet."""
        return self.inside and self.count < self.budget.minimum

    @property
    def forced(self) -> int | None:
        """The control token that must come next, if one must."""
        if self.phase is Phase.BEFORE and self.budget.minimum > 0:
            return self.budget.open_id
        if self.inside and self.budget.maximum is not None and self.count >= self.budget.maximum:
            return self.budget.close_id
        return None

    @property
    def closing(self) -> bool:
        """Whether the thinking ends as soon as its end is likely."""
        return self.inside and self.budget.soft is not None and self.count >= self.budget.soft

    def banned(self) -> list[int]:
        """Control tokens that must not come next."""
        if self.inside:
            return [self.budget.open_id, *([self.budget.close_id] if self.held else [])]
        return [] if self.may_open else [self.budget.open_id]
