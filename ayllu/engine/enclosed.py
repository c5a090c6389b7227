"""A grammar for what stands between two control tokens, and for nothing else.

A model that calls tools opens a call with one control token and closes it with another; between them stand
a name and arguments that have to fit. So the grammar begins anew whenever the opening token is drawn, the
closing token is let through only where the text is whole, and outside of the two nothing is looked at: no
mask is worked out there, the closing token alone is held back, because what it would close was never opened.
Without a grammar (no tool is on offer) the opening token is held back as well.

Like a thinking budget (`budget.py`) this is a place beside a sequence: `mask` looks, after any drafted
tokens, `accept` alone moves on. Masks change what is drawn, never what is reported: log-probabilities stay
those of the model without any mask.
"""

from __future__ import annotations

from collections.abc import Sequence as Ids

import numpy as np

from ayllu.engine.grammar import Matcher, matcher
from ayllu.engine.request import Enclosed
from ayllu.text.tokenizer import Tokenizer


class Enclosure:
    """How far a sequence has come in an Enclosed. RequestError where its grammar can't be served; one without
    a grammar needs no tokenizer."""

    def __init__(self, rule: Enclosed, tokenizer: Tokenizer | None, vocab_size: int) -> None:
        self.rule, self._beginning = rule, None
        if rule.grammar is not None and tokenizer is not None:
            self._beginning = matcher(rule.grammar, tokenizer, vocab_size)
        self._inside: Matcher | None = None
        # Forbidden outside. What the model has no logits for can't come anyway.
        marks = (rule.close_id,) if self._beginning else (rule.close_id, rule.open_id)
        self.held_back = tuple(mark for mark in marks if mark < vocab_size)

    @property
    def is_open(self) -> bool:
        """Whether what was accepted ends inside."""
        return self._inside is not None

    def place(self, drafts: Ids[int] = ()) -> tuple[Matcher | None, list[int]]:
        """After `drafts`: the matcher of what is open (None: outside), and the drafts that it hasn't seen."""
        inside, since = self._inside, list[int]()
        for token in drafts:
            if inside is not None and token == self.rule.close_id:
                inside = None
            elif inside is not None:
                since.append(token)
            elif token == self.rule.open_id:
                inside, since = self._beginning, []
        return inside, since

    def mask(self, drafts: Ids[int] = ()) -> np.ndarray | None:
        """Which tokens may come after `drafts` (bool, one a token). GrammarFailedError.

        None outside, where all but `held_back` may, and where the drafts themselves don't fit: nothing after
        them will be used.
        """
        inside, since = self.place(drafts)
        if inside is None or (found := inside.allowed(since)) is None:
            return None
        allowed_V, whole = found
        allowed_V[self.rule.close_id] = whole
        return allowed_V

    def accept(self, token: int) -> None:
        """Take a token that was allowed. GrammarFailedError."""
        if self._inside is None:
            if token == self.rule.open_id and self._beginning is not None:
                self._inside = self._beginning.again()
        elif token == self.rule.close_id:
            self._inside = None
        else:
            self._inside.consume(token)
