"""The engine: submit, step, cancel. One for chat, server, evaluation and RL rollouts.

Continuous batching (Orca, Yu et al. 2022): every step either prefills newcomers or decodes one token
for all running sequences; whoever is done leaves at once. The engine takes and gives token ids and
knows nothing of conversations or HTTP. One thread drives an engine.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ayllu.engine.executors.torch import TorchExecutor
from ayllu.engine.request import Completion, SamplingParams, Sequence
from ayllu.engine.sampler import sample
from ayllu.engine.scheduler import Scheduler
from ayllu.errors import ContextLengthError, RequestError
from ayllu.model.decoder import Decoder
from ayllu.model.weights import load_model
from ayllu.text.tokenizer import StreamDecoder, Tokenizer

_TYPES = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16}


class Engine:
    """Text from a model folder or from a live Decoder (whose weights may change between calls)."""

    def __init__(
        self,
        model: Decoder | Path | str,
        *,
        weights: str = "auto",
        device: str = "cpu",
        max_sequences: int = 64,
        max_waiting: int = 100_000,
        prefill_tokens: int = 8192,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        if weights not in _TYPES:
            raise RequestError(f"weights = {weights!r} is not one of {', '.join(_TYPES)}")
        self.tokenizer = tokenizer
        if not isinstance(model, Decoder):
            folder = Path(model)
            self.tokenizer = tokenizer or Tokenizer.load(folder)
            model = load_model(folder, device=device)
        dtype = torch.bfloat16 if weights == "auto" and device != "cpu" else _TYPES[weights]
        self.context_length, self.vocab_size = model.config.context, model.config.vocab_size
        self.executor = TorchExecutor(model, dtype)
        self.scheduler = Scheduler(
            max_sequences=max_sequences, max_waiting=max_waiting, prefill_tokens=prefill_tokens
        )
        self._ids = itertools.count()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel everything."""
        for sequence in [*self.scheduler.waiting, *self.scheduler.running]:
            self.cancel(sequence)

    def refresh(self) -> None:
        """Take over the live Decoder's weights after they have changed. Nothing may be running."""
        assert not self.busy, "weights can't change under running sequences"
        self.executor.refresh()

    # ---- one request at a time
    def submit(self, prompt_ids: list[int], params: SamplingParams) -> Sequence:
        """Queue a prompt. Raises RequestError, ContextLengthError, QueueFullError before any work."""
        if not prompt_ids:
            raise RequestError("the prompt is empty")
        if min(prompt_ids) < 0 or max(prompt_ids) >= self.vocab_size:
            raise RequestError(f"token ids must be from 0 to {self.vocab_size - 1}")
        room = self.context_length - len(prompt_ids)
        if room < 1 or (params.max_tokens or 0) > room:
            asked = f" and {params.max_tokens} more were asked for" if params.max_tokens else ""
            raise ContextLengthError(
                f"the prompt has {len(prompt_ids)} tokens{asked}, the context holds {self.context_length}",
                fix="shorten the conversation or ask for fewer tokens",
            )
        seed = params.seed if params.seed is not None else secrets.randbits(63)
        sequence = Sequence(next(self._ids), list(prompt_ids), params, params.max_tokens or room, seed)
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> list[Sequence]:
        """Do one batch of work -> the sequences that got a token (finished ones included)."""
        scheduler = self.scheduler
        if newcomers := scheduler.admit():
            first = len(scheduler.running)
            try:
                logits_BV = self.executor.prefill([s.prompt_ids for s in newcomers])
            except BaseException:  # out of memory, say: nobody has a slot yet
                scheduler.waiting.extendleft(reversed(newcomers))
                raise
            scheduler.running += newcomers
        elif scheduler.running:
            first, newcomers = 0, list(scheduler.running)
            logits_BV = self.executor.decode([s.token_ids[-1] for s in newcomers])
        else:
            return []
        tokens, logprobs = sample(logits_BV, newcomers)
        for sequence, token, logprob in zip(newcomers, tokens, logprobs, strict=True):
            sequence.append(token, logprob)
        # From the last slot down, so that a freed slot is filled by one that stays.
        for slot in range(first + len(newcomers) - 1, first - 1, -1):
            if scheduler.running[slot].finished:
                self._free(slot)
        return newcomers

    def cancel(self, sequence: Sequence) -> None:
        """Stop a sequence at once and free what it holds; nothing happens when it is done already."""
        if sequence.finished:
            return
        sequence.finish_reason = "cancelled"
        if sequence in self.scheduler.waiting:
            self.scheduler.waiting.remove(sequence)
        else:
            self._free(self.scheduler.running.index(sequence))

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self.scheduler.running or self.scheduler.waiting)

    def _free(self, slot: int) -> None:
        self.scheduler.remove(slot)
        self.executor.free(slot)

    # ---- conveniences
    def generate(
        self,
        prompts: list[list[int]],
        params: SamplingParams | list[SamplingParams] | None = None,
        **options: Any,
    ) -> list[Completion]:
        """Continue many prompts -> completions in the same order. `options` are SamplingParams fields."""
        each = params if isinstance(params, list) else [params or SamplingParams(**options)] * len(prompts)
        sequences: list[Sequence] = []
        try:
            for prompt, wanted in zip(prompts, each, strict=True):
                sequences.append(self.submit(prompt, wanted))
            while not all(s.finished for s in sequences):
                self.step()
        finally:  # a refused prompt must not leave the others behind in the queue
            for sequence in sequences:
                self.cancel(sequence)
        return [completion(s) for s in sequences]

    def stream(self, prompt: str | list[int], **options: Any) -> Iterator[str]:
        """Continue plain text (or ids), piece by piece; pieces are whole characters."""
        if self.tokenizer is None:
            raise RequestError("this engine has no tokenizer", fix="open it from a model folder")
        known = self.tokenizer
        ids = [*known.prefix, *known.encode(prompt)] if isinstance(prompt, str) else prompt
        params = SamplingParams(**options)
        sequence = self.submit(ids, replace(params, stop_ids=(*params.stop_ids, *known.eos)))
        decoder = StreamDecoder(known, continues=bool(known.decode(ids)))
        try:
            while not sequence.finished:
                if sequence in self.step() and (text := decoder.push(sequence.token_ids[-1])):
                    yield text
            if text := decoder.flush():
                yield text
        finally:
            self.cancel(sequence)


def completion(sequence: Sequence) -> Completion:
    """What the caller of a finished sequence gets."""
    logprobs = sequence.logprobs if sequence.params.logprobs else []
    return Completion(
        sequence.token_ids, logprobs, sequence.finish_reason or "cancelled", len(sequence.prompt_ids)
    )
