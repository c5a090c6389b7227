"""What sampling keeps of one sequence, and what it does to the logits before a token is drawn.

Counts for penalties, the place in a thinking budget and in a grammar, the text for stop strings: only
sequences that ask for one of these have a Steering. `steer` looks and changes nothing, for the place after
any drafted tokens; `accept` alone moves on, by one token that the engine has kept. So speculation may
ask about several places in a row and throw some away.
"""

from __future__ import annotations

from collections.abc import Sequence as Ids

import torch
from torch import Tensor

from ayllu.engine.budget import CLOSE_RANK, Thinking
from ayllu.engine.penalties import Penalties
from ayllu.engine.request import SamplingParams, Sequence
from ayllu.engine.stopping import StopReader
from ayllu.errors import AylluError, GrammarFailedError, RequestError
from ayllu.text.tokenizer import Tokenizer


class Steering:
    """One sequence's constraints, and how far it has come in them."""

    def __init__(
        self, params: SamplingParams, prompt_ids: list[int], tokenizer: Tokenizer | None, vocab_size: int
    ) -> None:
        self.params, self.count = params, 0
        self._failures: list[tuple[tuple[int, ...], AylluError]] = []  # by the drafts they come after
        self._since: tuple[int, ...] = ()  # tokens accepted after the last look without drafts
        self.penalties = Penalties(params, prompt_ids) if Penalties.needed(params) else None
        self.thinking = Thinking.begin(params.thinking) if params.thinking else None
        stops = () if params.ignore_stop else params.stop_ids
        self._stops = [i for i in stops if 0 <= i < vocab_size]
        self._ends, self.matcher, self.enclosure, self.reader = self._stops, None, None, None
        if params.enclosed is not None:
            from ayllu.engine.enclosed import Enclosure  # here: most requests have none

            grammar = params.enclosed.grammar is not None
            known = _needed(tokenizer, "a grammar for enclosed text") if grammar else None
            self.enclosure = Enclosure(params.enclosed, known, vocab_size)
        if params.grammar is not None:
            from ayllu.engine.grammar import matcher  # here: most requests have none

            tokenizer = _needed(tokenizer, "a grammar")
            self.matcher = matcher(params.grammar, tokenizer, vocab_size)
            # Of several stop ids (an end of the turn, an end of a call) the turn's own ends a whole text.
            self._ends = [i for i in self._stops if i in tokenizer.eos] or self._stops
        # Whether anything but an enclosure has to do with what may come.
        others = (self.penalties, self.thinking, self.matcher, params.min_tokens or None)
        self._looks_elsewhere = any(other is not None for other in others)
        if params.stop_strings:
            known = _needed(tokenizer, "a stop string")
            # Behind a control token a text begins anew, behind anything else it goes on.
            continues = prompt_ids[-1] not in known.control.values()
            self.reader = StopReader(known, params, continues=continues)

    @classmethod
    def begin(cls, sequence: Sequence, tokenizer: Tokenizer | None, vocab_size: int) -> Steering | None:
        """The state of a sequence that needs one. RequestError where its parameters don't fit the model."""
        params = sequence.params
        named = [("logit_bias", i) for i, _ in params.logit_bias]
        if params.enclosed is not None and params.enclosed.grammar is not None:
            named += [("enclosed", params.enclosed.open_id), ("enclosed", params.enclosed.close_id)]
        if (budget := params.thinking) is not None:
            named += [("thinking", budget.open_id), ("thinking", budget.close_id)]
            if budget.open_id == budget.close_id:
                raise RequestError(f"thinking opens and closes with the same token, {budget.open_id}")
        for name, token in named:
            if token >= vocab_size:
                raise RequestError(f"{name} names token {token}, the vocabulary ends at {vocab_size - 1}")
        steered = params.min_tokens or params.grammar or params.thinking or params.stop_strings
        if not steered and params.enclosed is None and not Penalties.needed(params):
            return None
        return cls(params, sequence.prompt_ids, tokenizer, vocab_size)

    @property
    def error(self) -> AylluError | None:
        """Why the sequence can't go on from here, if it can't: what was drawn for here is not to be used."""
        return next((error for drafts, error in self._failures if drafts == self._since), None)

    def held_back(self, drafts: Ids[int] = ()) -> tuple[int, ...] | None:
        """The tokens that alone are forbidden after `drafts`; None where `steer` has to look. Most of a turn
        that may call tools is such a place, and many rows of a batch are there at once."""
        if self.enclosure is None or self._looks_elsewhere or self._failures:
            return None
        if self.enclosure.place(drafts)[0] is not None if drafts else self.enclosure.is_open:
            return None
        if not drafts:
            self._since = ()
        return self.enclosure.held_back

    def steer(self, logits_V: Tensor, drafts: Ids[int] = ()) -> int | None:
        """Change one row of logits in place -> the token that has to come, if one has to."""
        if not drafts and self.error is None:
            self._failures, self._since = [], ()
        try:
            if self.enclosure is not None and self._keep_enclosed(logits_V, drafts):
                return None
        except AylluError as error:
            self._fail_after(drafts, error, logits_V)
            return None
        thinking, answer = self.thinking, list[int]()
        for token in drafts:
            if thinking is None or not thinking.belongs(token):
                answer.append(token)
            thinking = thinking.after(token) if thinking is not None else None
        if thinking is not None:
            forced = thinking.forced
            if forced is None and thinking.closing:
                close = thinking.budget.close_id
                likely = int((logits_V > logits_V[close]).sum()) < CLOSE_RANK
                forced = close if likely else None
            if forced is not None:
                return forced
        if self.penalties is not None:
            self.penalties.apply(logits_V, drafts)
        short = self.count + len(drafts) < self.params.min_tokens
        inside = thinking is not None and thinking.inside
        banned = thinking.banned() if thinking is not None else []
        if inside and (self.matcher is not None or (thinking is not None and thinking.held)):
            banned = [*banned, *self._stops]
        try:
            if self.matcher is not None and not inside:
                short = self._keep_to_grammar(logits_V, answer, thinking, short)
            if short:
                banned = [*banned, *self._stops]
            if banned:
                logits_V[torch.tensor(banned, device=logits_V.device)] = -torch.inf
            if bool(logits_V.amax() == -torch.inf):
                raise GrammarFailedError("no token fits what was asked for", fix="loosen the constraints")
        except AylluError as error:
            self._fail_after(drafts, error, logits_V)
        return None

    def _fail_after(self, drafts: Ids[int], error: AylluError, logits_V: Tensor) -> None:
        self._failures.append((self._since + tuple(drafts), error))
        logits_V.zero_()  # something that can be drawn from; the engine drops it

    def _keep_enclosed(self, logits_V: Tensor, drafts: Ids[int]) -> bool:
        """Inside an enclosure forbid what doesn't fit -> whether that was all there is to do. Neither the end
        of thinking nor a least length reaches in there; outside they hold as ever."""
        assert self.enclosure is not None
        allowed_V = self.enclosure.mask(drafts)
        if allowed_V is None:
            logits_V[list(self.enclosure.held_back)] = -torch.inf
            return not self._looks_elsewhere
        if self.penalties is not None:
            self.penalties.apply(logits_V, drafts)
        logits_V.masked_fill_(~torch.from_numpy(allowed_V).to(logits_V.device), -torch.inf)
        if bool(logits_V.amax() == -torch.inf):
            raise GrammarFailedError("no token fits what was asked for", fix="loosen the constraints")
        return True

    def _keep_to_grammar(
        self, logits_V: Tensor, answer: list[int], thinking: Thinking | None, short: bool
    ) -> bool:
        """Forbid what the grammar doesn't let follow -> whether the text must still not end."""
        assert self.matcher is not None
        found = self.matcher.allowed(answer)
        if found is None:
            return short
        allowed_V, whole = found
        if whole:
            # A text that is whole and can't go on ends, short or not.
            short = short and bool(allowed_V.any())
            allowed_V[self._ends] = True
        if thinking is not None and thinking.may_open:
            allowed_V[thinking.budget.open_id] = True
        logits_V.masked_fill_(~torch.from_numpy(allowed_V).to(logits_V.device), -torch.inf)
        return short

    def accept(self, token: int) -> str | None:
        """Move on by one token -> "stop" where the sequence ends with it, "error" where it failed."""
        if self.error is not None:
            return "error"
        self.count += 1
        self._since += (token,)
        if self.penalties is not None:
            self.penalties.add(token)
        thought = self.thinking is not None and self.thinking.belongs(token)
        if self.thinking is not None:
            self.thinking = self.thinking.after(token)
        try:
            if self.enclosure is not None:
                self.enclosure.accept(token)
            if self.matcher is not None and not thought and token not in self._stops:
                self.matcher.consume(token)
                if self.matcher.complete and not self._ends:
                    return "stop"
        except AylluError as error:
            self._failures, self._since = [((), error)], ()
            return "error"
        if self.reader is not None:
            self.reader.push(token)
            if self.reader.stopped:
                return "stop"
        return None


def _needed(tokenizer: Tokenizer | None, what: str) -> Tokenizer:
    if tokenizer is None:
        raise RequestError(f"{what} needs a tokenizer", fix="open the engine from a model folder")
    return tokenizer
