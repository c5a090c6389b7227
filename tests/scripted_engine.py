"""An engine that says what it is told: submit/step/cancel over canned token ids, one token a step.

It keeps the rules of the real one: a sequence ends at a stop id ("stop"), at max_tokens or at the
end of the context ("length"); a prompt without room and a full queue are refused.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ayllu.errors import ContextLengthError, QueueFullError


@dataclass
class Params:
    """The fields of SamplingParams that the loop touches."""

    max_tokens: int | None = None
    seed: int | None = None
    stop_ids: tuple[int, ...] = ()
    enclosed: Any = None  # held to a grammar: a script keeps to it by itself
    thinking: Any = None


@dataclass
class ScriptedSequence:
    id: int
    prompt: list[int]
    params: Params
    script: list[int]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False
    finish_reason: str | None = None


class ScriptedEngine:
    """`reply(prompt_ids) -> token ids` decides what is said after each prompt."""

    def __init__(
        self,
        reply: Callable[[list[int]], list[int]],
        *,
        context_length: int = 512,
        queue: int = 10**9,
        slots: int = 10**9,
    ) -> None:
        self.reply, self.context_length, self.queue, self.slots = reply, context_length, queue, slots
        self.live: list[ScriptedSequence] = []
        self.submitted: list[ScriptedSequence] = []
        self.cancelled: list[int] = []
        self.steps = 0

    def submit(self, prompt_ids: list[int], params: Params) -> ScriptedSequence:
        if len(self.live) >= self.queue:
            raise QueueFullError("full")
        if len(prompt_ids) + (params.max_tokens or 1) > self.context_length:
            raise ContextLengthError("too long")
        sequence = ScriptedSequence(len(self.submitted), prompt_ids, params, self.reply(prompt_ids))
        self.submitted.append(sequence)
        self.live.append(sequence)
        return sequence

    def step(self) -> list[ScriptedSequence]:
        self.steps += 1
        stepped = self.live[: self.slots]
        for sequence in stepped:
            position = len(sequence.token_ids)
            token = (
                sequence.script[position] if position < len(sequence.script) else sequence.params.stop_ids[0]
            )
            sequence.token_ids.append(token)
            sequence.logprobs.append(-0.001 * (sequence.id * 1000 + position))
            total = len(sequence.prompt) + position + 1
            if token in sequence.params.stop_ids:
                sequence.finished, sequence.finish_reason = True, "stop"
            elif position + 1 == sequence.params.max_tokens or total >= self.context_length:
                sequence.finished, sequence.finish_reason = True, "length"
        self.live = [sequence for sequence in self.live if not sequence.finished]
        return stepped

    def cancel(self, handle: ScriptedSequence) -> None:
        handle.finished, handle.finish_reason = True, "cancelled"
        self.cancelled.append(handle.id)
        self.live = [sequence for sequence in self.live if sequence is not handle]
