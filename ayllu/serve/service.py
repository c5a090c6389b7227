"""The service behind the routes: from a checked request to a Job that gives its news.

It owns the engine thread, decides whether a request is taken at all (queue, context length), and
knows nothing of HTTP. One Job is one request; it has `n` answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from ayllu.engine.request import SamplingParams
from ayllu.errors import (
    AylluError,
    ContextLengthError,
    EngineFailedError,
    ModelFileDamagedError,
    QueueFullError,
    ShuttingDownError,
)
from ayllu.files import read_json
from ayllu.gguf import read_header, sampling_from_gguf
from ayllu.reason.foreign import Continuation, TemplateChat
from ayllu.reason.loop import MAX_CALLS, Turn, held_to_tools
from ayllu.reason.thinking import bounded, told
from ayllu.reason.transcript import Chat, Offer, Transcript
from ayllu.serve.enginethread import EngineThread, News, Order
from ayllu.serve.faults import invalid
from ayllu.serve.holding import held_calls
from ayllu.serve.limits import Limits
from ayllu.serve.openai import ChatRequest, plain_messages
from ayllu.serve.stops import StopStrings
from ayllu.serve.tally import Tally
from ayllu.serve.writing import CallersTools, Ending, Writing
from ayllu.text.tokenizer import Tokenizer
from ayllu.tools.tool import Toolbox


class SamplingDefaults(msgspec.Struct, frozen=True):
    """What a request that says nothing gets: the model folder's generation_config.json."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    do_sample: bool = True
    thinking_budgets: bool = False  # the model minds a budget that its system turn names

    @classmethod
    def read(cls, folder: Path) -> SamplingDefaults:
        """From a model folder or a GGUF file; what isn't there is as above. ModelFileDamagedError."""
        return cls.said_by(folder) or cls()

    @classmethod
    def said_by(cls, folder: Path) -> SamplingDefaults | None:
        """The same; None where the model says nothing."""
        path = folder if folder.suffix.lower() == ".gguf" else folder / "generation_config.json"
        if not path.is_file():
            return None
        values = sampling_from_gguf(read_header(path).metadata) if path == folder else dict(read_json(path))
        if path == folder and not values:
            return None
        fields = {key: value for key, value in values.items() if value is not None}
        try:
            found = msgspec.convert(fields, cls)
        except msgspec.ValidationError as error:
            raise ModelFileDamagedError(f"{path} has a value of the wrong type", why=str(error)) from error
        return found if found.do_sample else msgspec.structs.replace(found, temperature=0.0)


@dataclass(frozen=True)
class Prepared:
    """A request that can be served: the conversation, how to sample, what may be called. `ignored`: what
    of the tools' schemas calls are not held to."""

    transcript: Transcript
    prompt_tokens: int
    params: SamplingParams
    toolbox: Toolbox
    stops: tuple[str, ...]
    choices: int
    ignored: tuple[str, ...] = ()


class Job:
    """One request under way. `next` gives (choice, news) pairs; `Service.end_job` frees the engine."""

    def __init__(self, prepared: Prepared) -> None:
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.prepared = prepared
        self.orders: list[Order] = []
        self._news: asyncio.Queue[tuple[int, News]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def put(self, choice: int, news: News) -> None:
        """From the engine thread. After the event loop's end nobody listens any more."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._news.put_nowait, (choice, news))

    async def next(self, timeout: float | None = None) -> tuple[int, News]:
        """The next piece of news; TimeoutError after `timeout` seconds of silence."""
        async with asyncio.timeout(timeout):
            return await self._news.get()


class Service:
    """A model to talk to. `name` is what clients call it; `toolbox` are the server's own tools."""

    def __init__(
        self,
        open_engine: Callable[[], Any],
        tokenizer: Tokenizer,
        *,
        name: str,
        chat: Chat | TemplateChat | None = None,
        toolbox: Toolbox | None = None,
        defaults: SamplingDefaults | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.name, self.limits = name, limits or Limits()
        self.chat, self.toolbox = chat or Chat(tokenizer), toolbox or Toolbox()
        self.defaults = defaults or SamplingDefaults()
        self.created = int(time.time())
        self.engine = EngineThread(open_engine, self.limits.running)
        self.draining = False
        self._open_answers = 0
        self._hello: Transcript | None = None  # what /readyz asks; a template may take long to write it
        self._writes = False  # the model's template has written a conversation
        self._probe: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Load the model. Raises what loading raises."""
        self.engine.start()
        try:
            self._hello = self.chat.start("1+1")
            self._writes = True
        except AylluError:  # a template that wants something else first, as a system message
            self._hello = Continuation(self.chat.tokenizer).start("1+1")

    def close(self) -> None:
        """Stop everything and free the model."""
        self.draining = True
        self.engine.close()

    def prepare(self, request: ChatRequest, salt: str = "") -> Prepared:
        """Tokenise and check; runs for long on long prompts, so not on the event loop's thread. Prefixes are
        shared with requests of the same `salt` only.

        Calls are held to the tools' schemas. Raises RequestError and ApiError (400), ContextLengthError with
        both numbers.
        """
        toolbox = self._toolbox(request)
        offers: Sequence[Offer] = toolbox.tools
        if isinstance(toolbox, CallersTools):
            offers = [msgspec.to_builtins(offer) for offer in request.tools or ()]
        wanted = request.max_completion_tokens or request.max_tokens
        params, ignored = self._params(request, wanted, salt), list[str]()
        if isinstance(toolbox, CallersTools):
            params, ignored = held_calls(params, self.chat, request)
        else:
            params = held_to_tools(params, self.chat, toolbox)
        # Where a call has to come at once there is no thought to bound.
        budget = request.thinking_budget if params.thinking is None else None
        messages = plain_messages(request)
        if budget is not None and self.defaults.thinking_budgets and isinstance(self.chat, Chat):
            messages = told(messages, budget)
        transcript = self._written(messages, offers, request.chat_template_kwargs)
        prompt = len(transcript.ids())
        context = self.engine.context_length
        if prompt + (wanted or 1) > context:
            raise ContextLengthError(
                f"this model's context is {context} tokens, and the request needs {prompt + (wanted or 1)}: "
                f"{prompt} in the messages and {wanted or 'at least 1'} for the answer",
                fix="shorten the messages or ask for a shorter answer",
            )
        stop = request.stop or []
        params = bounded(params, self.chat, transcript, budget)
        return Prepared(
            transcript,
            prompt,
            params,
            toolbox,
            (stop,) if isinstance(stop, str) else tuple(stop),
            request.n or 1,
            tuple(ignored),
        )

    @contextlib.contextmanager
    def places(self, choices: int) -> Iterator[None]:
        """Room for `choices` answers while they are prepared; `start_job` takes it over. QueueFullError when
        too many wait already, ShuttingDownError, EngineFailedError."""
        self._refuse_when_ending()
        if self._open_answers + choices > self.limits.running + self.limits.waiting:
            raise QueueFullError("too many requests wait already; try again in a moment")
        self._open_answers += choices
        try:
            yield
        except BaseException:
            self._open_answers -= choices
            raise

    def _refuse_when_ending(self) -> None:
        if self.draining:
            raise ShuttingDownError("the server is shutting down")
        if not self.engine.alive:
            raise EngineFailedError("the engine has stopped; the server must be started again")

    def start_job(self, prepared: Prepared) -> Job:
        """Queue all answers of a request, for which `places` has made room."""
        self._refuse_when_ending()
        job = Job(prepared)
        for choice in range(prepared.choices):
            order = Order(self._maker(prepared, choice), partial(job.put, choice))
            job.orders.append(order)
            self.engine.place(order)
        return job

    def end_job(self, job: Job) -> None:
        """Once for each job, whether it is complete or nobody wants it any more."""
        self._open_answers -= len(job.orders)
        for order in job.orders:
            self.engine.cancel(order)
        job.orders.clear()

    async def ready(self) -> None:
        """Ask the engine for one token. Raises when none comes. Many askers share one token."""
        if self.draining or not self.engine.alive:
            raise EngineFailedError("the engine does not take requests")
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._one_token())
        await asyncio.shield(self._probe)

    async def _one_token(self) -> None:
        assert self._hello is not None, "start() was called"
        params = SamplingParams(max_tokens=1, temperature=0.0)
        job = Job(Prepared(self._hello, len(self._hello.ids()), params, Toolbox(), (), 1))
        order = Order(self._maker(job.prepared, 0), partial(job.put, 0), urgent=True)
        self.engine.place(order)
        try:
            while True:
                _, news = await job.next(self.limits.ready_seconds)
                if isinstance(news, Exception):
                    raise news
                if isinstance(news, Ending):
                    return
        finally:
            self.engine.cancel(order)

    def _written(
        self, messages: list[dict[str, Any]], offers: Sequence[Offer], options: dict[str, Any] | None
    ) -> Transcript:
        """The conversation in the model's form; ApiError 400 where only this one can't be written."""
        try:
            return self.chat.from_messages(messages, tools=offers, options=options)
        except ModelFileDamagedError as error:
            if not self._writes:
                raise
            why = f"the model's chat template can't write this conversation: {error.why or error.what}"
            raise invalid(why, "tools" if offers else "messages") from error

    def _maker(self, prepared: Prepared, choice: int) -> Callable[[Any], Writing]:
        def make(engine: Any) -> Writing:
            turn = Turn(
                engine, self.chat, prepared.transcript, prepared.toolbox, prepared.params, index=choice
            )
            return Writing(turn, StopStrings(prepared.stops), Tally(self.chat.tokenizer))

        return make

    def _toolbox(self, request: ChatRequest) -> Toolbox:
        if request.tools and request.tool_choice != "none":
            most = 1 if request.parallel_tool_calls is False else MAX_CALLS
            return CallersTools([offer.function.name for offer in request.tools], most=most)
        wanted = request.ayllu_tools or []
        for index, name in enumerate(wanted):
            if name not in self.toolbox.names:
                known = ", ".join(self.toolbox.names) or "none"
                raise invalid(f"this server has no tool {name!r}; it has: {known}", f"ayllu_tools[{index}]")
        return self.toolbox.only(wanted)

    def _params(self, request: ChatRequest, max_tokens: int | None, salt: str) -> SamplingParams:
        default = self.defaults
        given = (request.temperature, request.top_p, request.top_k, request.min_p)
        fallback = (default.temperature, default.top_p, default.top_k, default.min_p)
        temperature, top_p, top_k, min_p = (
            f if g is None else g for g, f in zip(given, fallback, strict=True)
        )
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=max(int(top_k), 0),
            min_p=min_p,
            # Seeds are 64 bits without a sign; -1 is as good a seed as any other.
            seed=None if request.seed is None else request.seed & ((1 << 63) - 1),
            cache_salt=salt,
        )
