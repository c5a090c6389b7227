"""The routes: read the body within its bounds, let the service work, answer in OpenAI's format.

A client that goes away ends the work for it, in a stream and while a whole answer is awaited: a
retry would otherwise double the load.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Scope

from ayllu import __version__
from ayllu.serve import openai, sse
from ayllu.serve.enginethread import log_failure
from ayllu.serve.faults import ApiError, as_api_error
from ayllu.serve.guard import cache_salt, guarded
from ayllu.serve.limits import Limits
from ayllu.serve.openai import Says
from ayllu.serve.service import Job, Service
from ayllu.serve.writing import Ending, Part, Ran


def routes(service: Service, api_key: str | None) -> list[Route]:
    """All routes of the server. The key guards everything but the probes, which tell nothing."""

    async def models(request: Request) -> Response:
        return _json(openai.ModelList([openai.Model(service.name, service.created)]))

    async def model(request: Request) -> Response:
        _known_model(service, request.path_params["model"])
        return _json(openai.Model(service.name, service.created))

    async def chat(request: Request) -> Response:
        return await _chat(service, request)

    async def healthz(request: Request) -> Response:
        return _json({"status": "ok"})

    async def readyz(request: Request) -> Response:
        try:
            await service.ready()
        except Exception as error:
            raise ApiError(
                503, "not_ready", "the engine gives no tokens", headers={"retry-after": "2"}
            ) from error
        return _json({"status": "ready"})

    async def version(request: Request) -> Response:
        return _json({"version": __version__})

    return [
        Route("/v1/models", guarded(models, api_key), methods=["GET"]),
        Route("/v1/models/{model:path}", guarded(model, api_key), methods=["GET"]),
        Route("/v1/chat/completions", guarded(chat, api_key), methods=["POST"]),
        Route("/healthz", healthz, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
        Route("/version", version, methods=["GET"]),
    ]


async def _chat(service: Service, request: Request) -> Response:
    body = await read_body(request, service.limits)
    asked, ignored = openai.parse_chat(body, native=service.chat.tokenizer.native)
    if asked.model is not None:
        _known_model(service, asked.model)
    with service.places(asked.n or 1):
        prepared = await run_in_threadpool(service.prepare, asked, cache_salt(request.headers))
        job = service.start_job(prepared)
    ignored += prepared.ignored
    headers = {"x-ignored-fields": ", ".join(ignored)} if ignored else {}
    logprobs = bool(asked.logprobs)
    if asked.stream:
        usage = bool(asked.stream_options and asked.stream_options.include_usage)
        events = _events(service, job, named(request.scope), logprobs=logprobs, usage=usage)
        return sse.EventStream(events, lambda: service.end_job(job), headers)
    try:
        done = await _unless_gone(request, _whole(service, job, logprobs))
        return _json(done, headers)
    finally:
        service.end_job(job)


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body, as JSON content only, within its limits of size and time.

    The content type matters: pages of other sites can send text/plain without asking first.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "unsupported_media_type", "send the body with 'Content-Type: application/json'")
    too_large = ApiError(413, "request_too_large", f"the body may have at most {limits.body_bytes} bytes")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limits.body_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > limits.body_bytes:
                    raise too_large
    except TimeoutError as error:
        raise ApiError(408, "request_timeout", "the body came too slowly") from error
    return bytes(body)


async def _unless_gone(request: Request, work: Any) -> Any:
    """The result of `work`, given up as soon as the client closes the connection."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()


async def _gone(request: Request) -> None:
    # The body is read, so the only message left is the disconnect.
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _whole(service: Service, job: Job, logprobs: bool) -> openai.Completion:
    """All answers of a job, collected."""
    parts: list[list[Part]] = [[] for _ in job.orders]
    endings: dict[int, Ending] = {}
    while len(endings) < len(parts):
        choice, news = await job.next()
        if isinstance(news, Exception):
            raise news
        if isinstance(news, Ending):
            endings[choice] = news
        else:
            parts[choice].append(news)
    choices = [
        _choice(job, index, mine, endings[index], logprobs=logprobs) for index, mine in enumerate(parts)
    ]
    return openai.Completion(job.id, job.created, service.name, choices, _usage(job, list(endings.values())))


def _choice(job: Job, index: int, parts: list[Part], ending: Ending, *, logprobs: bool) -> openai.Choice:
    content = "".join(part.text for part in parts if part.kind == "say")
    thoughts = "".join(part.text for part in parts if part.kind == "think")
    calls = [_call(job, index, part) for part in parts if part.call]
    message = Says(role="assistant", content=content or (None if calls else ""))
    if thoughts:
        message.reasoning_content = message.reasoning = thoughts
    if calls:
        message.tool_calls = calls
    if ending.ran:
        message.ayllu_trace = [_trace(ran) for ran in ending.ran]
    tokens = [token for part in parts for token in part.logprobs]
    return openai.Choice(index, message, ending.finish_reason, openai.Logprobs(tokens) if logprobs else None)


def named(scope: Scope) -> str:
    """The request's id, under which the log speaks of it and the client knows it (x-request-id)."""
    return str(scope.get("state", {}).get("request_id", ""))


async def _events(
    service: Service, job: Job, name: str, *, logprobs: bool, usage: bool
) -> AsyncIterator[bytes]:
    """The answers as they are made, then `[DONE]`; an error becomes an event, because the status is sent."""

    def chunk(index: int, delta: Says, **more: Any) -> bytes:
        choices = [openai.ChunkChoice(index, delta, **more)]
        return sse.event(openai.Chunk(job.id, job.created, service.name, choices, "chat.completion.chunk"))

    endings: dict[int, Ending] = {}
    for index in range(len(job.orders)):
        yield chunk(index, Says(role="assistant", content=""))
    try:
        while len(endings) < job.prepared.choices:
            try:
                choice, news = await job.next(service.limits.keep_alive)
            except TimeoutError:
                # Some clients count parsed events only, some proxies any bytes: both get a sign of life.
                silent = next(i for i in range(job.prepared.choices) if i not in endings)
                yield sse.COMMENT + chunk(silent, Says(content=""))
                continue
            if isinstance(news, Exception):
                raise news
            if isinstance(news, Ending):
                endings[choice] = news
                last = Says(ayllu_trace=[_trace(ran) for ran in news.ran]) if news.ran else Says()
                yield chunk(choice, last, finish_reason=news.finish_reason)
                continue
            shown = openai.Logprobs(list(news.logprobs)) if logprobs and news.logprobs else None
            for delta in _deltas(job, choice, news):
                yield chunk(choice, delta, logprobs=shown)
        if usage:
            counts = _usage(job, list(endings.values()))
            yield sse.event(
                openai.Chunk(job.id, job.created, service.name, [], "chat.completion.chunk", counts)
            )
        yield sse.DONE
    except Exception as error:
        refusal = as_api_error(error)
        if refusal.status == 500:
            log_failure(name, error)
        yield sse.event(refusal.envelope)
        yield sse.DONE


def _deltas(job: Job, choice: int, part: Part) -> list[Says]:
    if part.kind == "say":
        return [Says(content=part.text)]
    if part.kind == "think":
        return [Says(reasoning_content=part.text, reasoning=part.text)]
    # Some clients lose argument bytes that come with the name: name first, then the arguments.
    whole = _call(job, choice, part)
    head = openai.SentCall(
        openai.SentFunction("", whole.function.name), whole.id, whole.type, index=part.number
    )
    rest = openai.SentCall(openai.SentFunction(whole.function.arguments), index=part.number)
    return [Says(tool_calls=[head]), Says(tool_calls=[rest])]


def _call(job: Job, choice: int, part: Part) -> openai.SentCall:
    assert part.call is not None
    function = openai.SentFunction(part.call.arguments, part.call.name)
    name = f"call_{job.id.removeprefix('chatcmpl-')[:20]}_{choice}_{part.number}"
    return openai.SentCall(function, name, "function")


def _trace(ran: Ran) -> openai.Trace:
    return openai.Trace(ran.call.name, ran.call.arguments, ran.result)


def _usage(job: Job, endings: list[Ending]) -> openai.Usage:
    prompt, sampled = job.prepared.prompt_tokens, sum(ending.completion_tokens for ending in endings)
    details = openai.CompletionDetails(sum(ending.reasoning_tokens for ending in endings))
    return openai.Usage(prompt, sampled, prompt + sampled, details)


def _known_model(service: Service, name: str) -> None:
    if name != service.name:
        raise openai.model_not_found(name, service.name)


def _json(value: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json", headers=headers)
