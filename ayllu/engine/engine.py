"""The engine: submit, step, cancel. One for chat, server, evaluation and RL rollouts.

Continuous batching (Orca, Yu et al. 2022): a step takes one more token for every sequence that is under way
and reads pieces of the prompts of others; whoever is done leaves at once. The engine takes and gives token
ids and knows nothing of conversations or HTTP. One thread drives an engine.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ayllu.engine import sampler
from ayllu.engine.assembly import Assembler
from ayllu.engine.batch import BLOCK
from ayllu.engine.blocks import BlockPool, blocks_for
from ayllu.engine.diskcache import DiskCache
from ayllu.engine.draftmodel import open_drafter
from ayllu.engine.executors import WEIGHTS, Executor, make_executor
from ayllu.engine.executors.torch import depends_on_length
from ayllu.engine.memory import cache_blocks as size_of_cache
from ayllu.engine.memory import check_device
from ayllu.engine.packed import PackedModel
from ayllu.engine.prefix import PrefixCache
from ayllu.engine.quantize import open_model
from ayllu.engine.request import MAX_SEED, Completion, Sampled, SamplingParams, Sequence
from ayllu.engine.scheduler import Scheduler, Work
from ayllu.engine.speculate import Drafter, Speculation, accepted
from ayllu.engine.stopping import StopReader
from ayllu.errors import ContextLengthError, EngineFailedError, RequestError
from ayllu.model.decoder import Decoder
from ayllu.text.tokenizer import StreamDecoder, Tokenizer


@dataclass
class Stats:
    """What an engine has done since it was opened; why was it slow? Seconds of steps with prompt tokens in
    them, of steps that only decoded, and in both of planning and of sampling."""

    steps: int = 0
    prefilled: int = 0  # prompt tokens computed, those of preempted sequences again
    decoded: int = 0  # tokens sampled
    cached: int = 0  # prompt tokens taken from the prefix cache
    drafted: int = 0  # tokens guessed
    accepted: int = 0  # tokens that came without a step of their own
    preemptions: int = 0
    failures: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    plan_seconds: float = 0.0
    sample_seconds: float = 0.0


class Engine:
    """Text from a model folder or from a live Decoder (whose weights may change between calls).

    `weights`: auto, float32, bfloat16, int8, int4; `cache`: how keys and values are kept. The cache has
    `cache_blocks` blocks of 16 tokens, or `cache_bytes`, or what the machine has room for (`cache_reason`).
    `cache_folder`: keep computed text there across restarts, `cache_folder_bytes` of it. `cache_salt`: whose
    cache it is (a request's own salt comes on top). `prefill_tokens`: tokens of one step. `speculate`: guess
    several tokens at once, "ngram" from the text itself, or by the smaller model in a folder.
    """

    def __init__(
        self,
        model: Decoder | PackedModel | Path | str,
        *,
        weights: str = "auto",
        device: str = "cpu",
        max_sequences: int = 64,
        max_waiting: int = 100_000,
        prefill_tokens: int | None = None,
        tokenizer: Tokenizer | None = None,
        cache: str = "auto",
        cache_blocks: int | None = None,
        cache_bytes: int | None = None,
        cache_folder: Path | str | None = None,
        cache_folder_bytes: int = 8 << 30,
        cache_salt: str = "",
        prefix_cache: bool = True,
        speculate: Drafter | Path | str | None = None,
        executor: Executor | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        check_device(device)
        if max_sequences < 1:
            raise RequestError(f"max_sequences = {max_sequences} would answer nobody", fix="give 1 or more")
        if weights not in WEIGHTS:
            raise RequestError(f"weights = {weights!r:.100} is not one of {', '.join(WEIGHTS)}")
        if not isinstance(model, Decoder | PackedModel):
            folder = Path(model)
            self.tokenizer = tokenizer or Tokenizer.load(folder)
            model = open_model(folder, weights, device)
        config = model.config
        self.executor = executor or make_executor(model, weights, device, cache)
        self.vocab_size = config.vocab_size
        blocks, self.cache_reason = size_of_cache(
            self.executor.block_bytes,
            config.context,
            max_sequences,
            device,
            blocks=cache_blocks,
            size=cache_bytes,
        )
        whole = depends_on_length(config)
        speculation = None
        if speculate is not None:
            if whole:
                raise RequestError("rotary angles change with the text's length here: no speculation")
            ours = (weights, device, self.vocab_size, self.tokenizer)
            speculation = Speculation(open_drafter(speculate, *ours), vocab_size=self.vocab_size)
        self.pool = BlockPool(blocks, self.executor.reserve)
        self.disk = None if cache_folder is None else DiskCache(Path(cache_folder), cache_folder_bytes)
        self.prefix = PrefixCache(
            self.pool, self.executor, disk=self.disk, salt=cache_salt, enabled=prefix_cache and not whole
        )
        self.scheduler = Scheduler(
            self.pool,
            self.prefix,
            self.executor.copy_block,
            max_sequences=max_sequences,
            max_waiting=max_waiting,
            prefill_tokens=prefill_tokens or (512 if device == "cpu" else 8192),
            whole=whole,
            speculation=speculation,
        )
        self._model_context = config.context
        self._ids = itertools.count()
        self._stats = Stats()
        self._assembler = Assembler()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel everything; what was computed goes to the cache folder, if there is one."""
        for sequence in [*self.scheduler.waiting, *self.scheduler.running.values()]:
            self.cancel(sequence)
        if self.disk is not None:
            self.prefix.save(wait=True)
            self.disk.close()

    def refresh(self) -> None:
        """Take over the live Decoder's weights after they have changed. Nothing may be running."""
        assert not self.busy, "weights can't change under running sequences"
        self.executor.refresh()
        self.prefix.forget()

    @property
    def context_length(self) -> int:
        """Tokens of the longest text: the model's context, or what the cache holds where that is less. The
        last token of a text is never read again and needs no place."""
        return min(self._model_context, self.pool.capacity * BLOCK + 1)

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self.scheduler.running or self.scheduler.waiting)

    def stats(self) -> Stats:
        """A copy of the counts so far."""
        return replace(self._stats, preemptions=self.scheduler.preemptions)

    # ---- one request at a time
    def submit(self, prompt_ids: list[int], params: SamplingParams) -> Sequence:
        """Queue a prompt. Raises RequestError, ContextLengthError, QueueFullError before any work."""
        if params.n > 1 or (params.best_of or 1) > 1:
            raise RequestError("several completions of one prompt", fix="use submit_many or generate")
        return self.submit_many(prompt_ids, params)[0]

    def submit_many(self, prompt_ids: list[int], params: SamplingParams) -> list[Sequence]:
        """Queue a prompt `best_of` (or `n`) times; it is computed once. Raises as `submit`; all or none."""
        if not prompt_ids:
            raise RequestError("the prompt is empty")
        if min(prompt_ids) < 0 or max(prompt_ids) >= self.vocab_size:
            raise RequestError(f"token ids must be from 0 to {self.vocab_size - 1}")
        room = self.context_length - len(prompt_ids)
        if room < 1 or max(params.max_tokens or 0, params.min_tokens) > room:
            asked = max(params.max_tokens or 0, params.min_tokens)
            more = f" and {asked} more were asked for" if asked else ""
            holds = "context" if self.context_length == self._model_context else "cache"
            raise ContextLengthError(
                f"the prompt has {len(prompt_ids)} tokens{more}, the {holds} holds {self.context_length}",
                fix="shorten the conversation or ask for fewer tokens",
            )
        base = params.seed if params.seed is not None else secrets.randbits(63)
        sequences: list[Sequence] = []
        for choice in range(params.best_of or params.n):
            sequence = Sequence(
                next(self._ids), list(prompt_ids), params, params.max_tokens or room, _seed(base, choice)
            )
            if params.prompt_logprobs:
                sequence.prompt_logprobs = [None]  # nothing comes before the first
            sequence.twin = sequences[0] if sequences else None
            sequence.state = sampler.begin(sequence, self.tokenizer, self.vocab_size)
            sequences.append(sequence)
        self.scheduler.add(sequences)
        return sequences

    def cancel(self, sequence: Sequence) -> None:
        """Stop a sequence at once and free what it holds; nothing happens when it is done already."""
        if not sequence.finished:
            self._finish(sequence, "cancelled")

    def step(self) -> list[Sequence]:
        """Do one batch of work -> the sequences that got tokens (finished ones included).

        Raises EngineFailedError when the executor fails: the sequences of that step are finished with the
        reason "error", all others are untouched, and the engine can be used on.
        """
        stats, begun = self._stats, time.perf_counter()
        works = self.scheduler.plan()
        self._fail_what_lost_its_room()
        if not works:
            self.prefix.save()
            return []
        try:
            step = self._assembler.assemble(works)
            planned = time.perf_counter()
            stats.plan_seconds += planned - begun
            logits_LV = self.executor.step(step.batch)
            sampling = time.perf_counter()
            sampled = sampler.sample(step.choosing(logits_LV), step.rows) if step.rows else []
            prompts = step.prompt_logprobs(logits_LV)
            stats.sample_seconds += time.perf_counter() - sampling
        except Exception as error:
            self._fail(works, error)
        for sequence, logprobs in prompts:
            sequence.prompt_logprobs = [*sequence.prompt_logprobs, *logprobs]
        touched = self._commit(works, sampled)
        self.prefix.save()
        stats.steps += 1
        read = sum(work.end - work.start for work in works if work.start < len(work.sequence.prompt_ids))
        stats.prefilled += read
        seconds = time.perf_counter() - begun
        if read:
            stats.prefill_seconds += seconds
        else:
            stats.decode_seconds += seconds
            if self.scheduler.speculation is not None:
                rows = len(step.batch.tokens_T)
                self.scheduler.speculation.costs.measure(rows, time.perf_counter() - planned)
        return touched

    # ---- the parts of a step
    def _commit(self, works: list[Work], sampled: list[Sampled]) -> list[Sequence]:
        """Take over what a step has given."""
        touched, at = [], 0
        for work in works:
            sequence, drafts = work.sequence, work.drafts
            if work.samples and not sequence.token_ids:
                self._stats.cached += sequence.cached_tokens
            sequence.computed = work.end
            if work.samples:
                chosen = accepted(drafts, sampled[at : at + len(drafts) + 1])
                at += len(drafts) + 1
                taken = self._append(sequence, chosen)
                sequence.computed = work.end + max(taken - 1, 0)
                self._stats.decoded += taken
                self._stats.drafted += len(drafts)
                self._stats.accepted += max(taken - 1, 0)
                if self.scheduler.speculation is not None:
                    self.scheduler.speculation.learn(sequence, drafts, len(chosen) - 1)
                touched.append(sequence)
            self.prefix.settle(sequence, work.start)
            if sequence.finished:
                self._finish(sequence, sequence.finish_reason or "error")
        return touched

    def _append(self, sequence: Sequence, chosen: list[Sampled]) -> int:
        """Give a sequence its tokens until it is finished -> how many."""
        for taken, one in enumerate(chosen):
            if (state := sequence.state) is not None and state.error is not None:
                # Its grammar can't go on, say: nobody else is concerned.
                sequence.finish_reason, sequence.error = "error", state.error
                return taken
            sequence.append(one.token, one.logprob, one.top)
            if sequence.finish_reason == "error" and state is not None:
                sequence.error = state.error
            if sequence.finished:
                return taken + 1
        return len(chosen)

    def _finish(self, sequence: Sequence, reason: str) -> None:
        sequence.finish_reason = reason
        sequence.twin = None
        self.scheduler.remove(sequence)
        self._assembler.forget(sequence)
        if self.scheduler.speculation is not None:
            self.scheduler.speculation.forget(sequence)

    def _fail(self, works: list[Work], error: Exception) -> None:
        """End the sequences of a failed step. Always raises."""
        self._stats.failures += 1
        failure = EngineFailedError(
            "the engine failed in the middle of a step",
            why=f"{type(error).__name__}: {error}"[:300],
            fix="ask again; if it stays, use a smaller cache or the torch executor",
        )
        for work in works:
            work.sequence.error = failure
            self._finish(work.sequence, "error")
        raise failure from error

    def _fail_what_lost_its_room(self) -> None:
        """The cache came out smaller than it was to be: what fits no more can only end."""
        if self.pool.failure is None:
            return
        failure, self.pool.failure = self.pool.failure, None
        lost = [
            sequence
            for sequence in [*self.scheduler.waiting, *self.scheduler.running.values()]
            if blocks_for(len(sequence.prompt_ids) + sequence.limit - 1) > self.pool.capacity
        ]
        if lost:
            self._fail([Work(sequence, 0, 0) for sequence in lost], failure)

    # ---- conveniences
    def generate(
        self,
        prompts: list[list[int]],
        params: SamplingParams | list[SamplingParams] | None = None,
        **options: Any,
    ) -> list[Completion]:
        """Continue many prompts -> completions in the same order, `n` for each. `options` are SamplingParams
        fields. Raises what a sequence's own failure was."""
        each = params if isinstance(params, list) else [params or SamplingParams(**options)] * len(prompts)
        groups: list[list[Sequence]] = []
        try:
            for prompt, wanted in zip(prompts, each, strict=True):
                groups.append(self.submit_many(prompt, wanted))
            while not all(s.finished for group in groups for s in group):
                self.step()
        finally:  # a refused prompt must not leave the others behind in the queue
            for group in groups:
                for sequence in group:
                    self.cancel(sequence)
        for group in groups:
            for sequence in group:
                if sequence.error is not None:
                    raise sequence.error
        return [completion(s) for group in groups for s in sampler.best(group, group[0].params.n)]

    def stream(self, prompt: str | list[int], **options: Any) -> Iterator[str]:
        """Continue plain text (or ids), piece by piece; pieces are whole characters."""
        if self.tokenizer is None:
            raise RequestError("this engine has no tokenizer", fix="open it from a model folder")
        known = self.tokenizer
        ids = [*known.prefix, *known.encode(prompt)] if isinstance(prompt, str) else prompt
        params = SamplingParams(**options)
        sequence = self.submit(ids, replace(params, stop_ids=(*params.stop_ids, *known.eos)))
        continues = bool(known.decode(ids))
        decoder = (
            StopReader(known, params, continues=continues)
            if params.stop_strings
            else StreamDecoder(known, continues=continues)
        )
        given = 0
        try:
            while not sequence.finished:
                self.step()
                text = "".join(map(decoder.push, sequence.token_ids[given:]))
                given = len(sequence.token_ids)
                if text:
                    yield text
            if sequence.error is not None:
                raise sequence.error
            if text := decoder.flush():
                yield text
        finally:
            self.cancel(sequence)


def completion(sequence: Sequence) -> Completion:
    """What the caller of a finished sequence gets."""
    logprobs = sequence.logprobs if sequence.params.logprobs else []
    return Completion(
        sequence.token_ids,
        logprobs,
        sequence.finish_reason or "cancelled",
        len(sequence.prompt_ids),
        sequence.cached_tokens,
        sequence.top_logprobs,
        sequence.prompt_logprobs,
    )


def _seed(base: int, choice: int) -> int:
    """A seed of its own for each completion of one prompt; the first has the one that was given."""
    return (base + choice * 0x9E3779B97F4A7C15) & MAX_SEED
