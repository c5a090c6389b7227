"""OpenAI's chat-completions wire format: what arrives, checked; what is sent, as structs.

Three kinds of fields arrive. Fields that are served are declared here with their bounds; a value outside them
is a 400 that names the field. Fields that would change the answer and are not served (`response_format` with
a schema, penalties, the older `functions`, other servers' ways to constrain an answer) are refused unless
they are neutral: quietly ignoring them would be a wrong answer. All others are accepted and named in the
header `x-ignored-fields`, because clients send many extras.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from ayllu.reason.thinking import MOST
from ayllu.serve import limits
from ayllu.serve.faults import ApiError, invalid
from ayllu.serve.tally import TokenLogprob

Name = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}\Z")]  # a tool's name, as OpenAI allows it
Stop = Annotated[str, Meta(min_length=1, max_length=limits.MAX_STOP_LENGTH)]
TokenCount = Annotated[int, Meta(ge=1, le=1 << 31)]


# ---- what arrives
class TextPart(Struct):
    """A part of a message's content. Only text is served."""

    type: str
    text: str | None = None


class FunctionCall(Struct):
    """A call in the history; `arguments` is JSON text, kept as the model wrote it."""

    name: Name
    arguments: str


class ToolCall(Struct):
    """A call of the assistant in the history."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class Message(Struct):
    """One message of the conversation, of any role."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class Function(Struct):
    """A tool that the caller offers. Our own models are told its name only; see `ignored_fields`."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolOffer(Struct):
    """An entry of `tools`."""

    type: Literal["function"]
    function: Function


class StreamOptions(Struct):
    """`include_usage` asks for a last chunk with the counts."""

    include_usage: bool | None = None


class ResponseFormat(Struct):
    """Only plain text is served so far."""

    type: str


class ChatRequest(Struct):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=limits.MAX_MESSAGES)]
    model: str | None = None
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=1 << 20)] | None = None  # -1 and 0: off
    min_p: Annotated[float, Meta(ge=0, lt=1)] | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=limits.MAX_STOPS)] | None = None
    n: Annotated[int, Meta(ge=1, le=limits.MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[ToolOffer], Meta(max_length=limits.MAX_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None  # our own models write one call at a time anyway
    chat_template_kwargs: dict[str, Any] | None = None  # for a model with a template of its own
    response_format: ResponseFormat | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    logit_bias: dict[str, float] | None = None
    thinking_budget: Annotated[int, Meta(ge=0, le=MOST)] | None = None  # as Qwen's service has it
    ayllu_tools: Annotated[list[Name], Meta(max_length=limits.MAX_TOOLS)] | None = None


# Fields that clients of this interface know and that aren't served, and what to do instead.
NOT_SERVED = {
    "functions": "give 'tools'",
    "function_call": "give 'tool_choice'",
    "guided_json": "answers can't be held to a schema yet",
    "guided_regex": "answers can't be held to an expression yet",
    "guided_choice": "answers can't be held to choices yet",
    "guided_grammar": "answers can't be held to a grammar yet",
    "structured_outputs": "answers can't be held to a schema yet",
    "min_tokens": "there is no least length",
    "stop_token_ids": "give 'stop'",
    "ignore_eos": "an answer ends where the model ends it",
    "modalities": "only text is served",
    "audio": "only text is served",
    "web_search_options": "there is no search",
}
_PENALTIES = ("repetition_penalty", "length_penalty")  # neutral at 1
_NEUTRAL: tuple[Any, ...] = (None, False, 0, [], {}, ["text"], "none", "auto")
_NEUTRAL_OF: dict[str, tuple[Any, ...]] = {"web_search_options": (None,)}  # {} switches the search on
_KNOWN = frozenset(ChatRequest.__struct_fields__)
_PATH = re.compile(r" - at `(?:key in )?\$\.?(.*)`$")
_FIELD_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def parse_chat(body: bytes, *, native: bool = True) -> tuple[ChatRequest, list[str]]:
    """The checked request and the names of ignored fields; `native`: for a model of our own form.

    Raises ApiError 400.
    """
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"the body is not valid JSON: {_short(str(error))}", code="invalid_json") from error
    if not isinstance(fields, dict):
        raise invalid("the body must be a JSON object", code="invalid_json")
    if not fields.get("messages"):
        raise invalid("'messages' is needed, with at least one message", "messages", "missing_field")
    try:
        request = msgspec.convert(fields, ChatRequest)
    except (msgspec.ValidationError, RecursionError) as error:
        found = _PATH.search(str(error))
        raise invalid(_short(_PATH.sub("", str(error))), found.group(1) if found else None) from error
    _refuse_unknown_wishes(fields)
    _refuse_what_is_not_served(request)
    return request, ignored_fields(fields, request, native=native)


def _refuse_unknown_wishes(fields: dict[str, Any]) -> None:
    """400 for fields of other servers that would change the answer."""
    for name, instead in NOT_SERVED.items():
        if fields.get(name) not in _NEUTRAL_OF.get(name, _NEUTRAL):
            raise invalid(f"{name!r} is not served: {instead}", name, "unsupported_value")
    for name in _PENALTIES:
        if fields.get(name) not in (None, 1):
            raise invalid("penalties are not offered; only 1 is accepted", name, "unsupported_value")


def _refuse_what_is_not_served(request: ChatRequest) -> None:
    """400 for fields that would change the answer if they were honoured, and are not."""
    not_served = "unsupported_value"
    if request.top_logprobs:
        raise invalid("alternatives to the sampled token are not offered yet", "top_logprobs", not_served)
    if request.response_format is not None and request.response_format.type != "text":
        raise invalid("only {'type': 'text'} is offered so far", "response_format", not_served)
    for name in ("frequency_penalty", "presence_penalty"):
        if getattr(request, name):
            raise invalid("penalties are not offered; only 0 is accepted", name, not_served)
    if request.logit_bias:
        raise invalid("biases are not offered", "logit_bias", not_served)
    if request.tools and request.ayllu_tools:
        raise invalid("give either 'tools' (run by you) or 'ayllu_tools' (run here)", "ayllu_tools")
    names = [offer.function.name for offer in request.tools or ()]
    if len(set(names)) != len(names):
        raise invalid("two tools have the same name", "tools")
    _check_choice(request.tool_choice, names)


def _check_choice(choice: str | dict[str, Any] | None, names: list[str]) -> None:
    """400 unless it is auto, none, required or one of the tools, by OpenAI's object."""
    if choice in (None, "auto", "none"):
        return
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if choice.get("type") != "function" or not isinstance(name, str):
            wanted = '{"type": "function", "function": {"name": ...}}'
            raise invalid(f"a tool is chosen by {wanted}", "tool_choice")
        if name not in names:
            raise invalid(f"there is no tool {_short(name)!r} among 'tools'", "tool_choice")
    elif choice != "required":
        raise invalid("give 'auto', 'none', 'required' or a tool", "tool_choice")
    elif not names:
        raise invalid("'required' needs 'tools'", "tool_choice")


def forced_names(request: ChatRequest) -> list[str]:
    """The tools of which one has to be called; none where the model is free."""
    choice = request.tool_choice
    if isinstance(choice, dict):
        return [choice["function"]["name"]]
    return [offer.function.name for offer in request.tools or ()] if choice == "required" else []


def ignored_fields(fields: dict[str, Any], request: ChatRequest, *, native: bool = True) -> list[str]:
    """Names of fields that were sent and have no effect; safe to put into a header."""
    names = [
        name if _FIELD_NAME.fullmatch(name) else "(unprintable)" for name in fields if name not in _KNOWN
    ]
    if not native:
        return names[:50]
    functions = [offer.function for offer in request.tools or ()]
    names += ["chat_template_kwargs"] * bool(request.chat_template_kwargs)
    # The conversation's form names the tools; what they do the model knows from its training, or not.
    names += ["tools.function.description"] * any(f.description for f in functions)
    return names[:50]


def plain_messages(request: ChatRequest) -> list[dict[str, Any]]:
    """The messages with plain-string contents and one name for the thinking, for `Chat.from_messages`."""
    return [_plain(message, index) for index, message in enumerate(request.messages)]


def _plain(message: Message, index: int) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": _text(message.content, f"messages[{index}]")}
    if message.role == "assistant":
        if thoughts := message.reasoning_content or message.reasoning:
            plain["reasoning_content"] = thoughts
        if message.tool_calls:
            plain["tool_calls"] = [msgspec.to_builtins(call) for call in message.tool_calls]
    elif message.role == "tool":
        if not message.tool_call_id:
            where = f"messages[{index}].tool_call_id"
            raise invalid("a tool's result needs the id of its call", where, "missing_field")
        plain["tool_call_id"] = message.tool_call_id
    return plain


def _text(content: str | list[TextPart] | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for index, part in enumerate(content):
        if part.type != "text" or part.text is None:
            raise invalid(
                "this model reads text parts only", f"{where}.content[{index}]", "unsupported_value"
            )
    return "".join(part.text or "" for part in content)


def _short(text: str) -> str:
    return text if len(text) <= 300 else text[:300] + "…"


# ---- what is sent
class SentFunction(Struct, omit_defaults=True):
    """In a stream the first piece of a call has the name, the later ones the arguments."""

    arguments: str
    name: str | UnsetType = UNSET


class SentCall(Struct, omit_defaults=True):
    """A call of the model, whole or as a piece of a stream (then with its `index`)."""

    function: SentFunction
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    index: int | UnsetType = UNSET


class Trace(Struct):
    """A call that the server ran itself, and what came of it."""

    name: str
    arguments: str
    result: str


class Says(Struct, omit_defaults=True):
    """A message, or in a stream what was added to it. Thinking goes by both of its usual names."""

    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[SentCall] | UnsetType = UNSET
    ayllu_trace: list[Trace] | UnsetType = UNSET


class Logprobs(Struct):
    """Log-probabilities of the answer's tokens (not of the thinking), as sampled."""

    content: list[TokenLogprob]
    refusal: None = None


class Choice(Struct):
    """One finished answer."""

    index: int
    message: Says
    finish_reason: str
    logprobs: Logprobs | None = None


class ChunkChoice(Struct):
    """What one event adds to one answer."""

    index: int
    delta: Says
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class CompletionDetails(Struct):
    """How many of the sampled tokens were thinking."""

    reasoning_tokens: int


class Usage(Struct):
    """Tokens. The prompt is counted once, completions are all sampled tokens of all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: CompletionDetails


class Completion(Struct):
    """The body of an answer that is not streamed."""

    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    object: str = "chat.completion"


class Chunk(Struct, omit_defaults=True):
    """One event of a streamed answer. `choices` is always there: clients read it in every event."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    object: str
    usage: Usage | UnsetType = UNSET


class Model(Struct):
    """An entry of /v1/models."""

    id: str
    created: int
    object: str = "model"
    owned_by: str = "ayllu"


class ModelList(Struct):
    """The body of /v1/models."""

    data: list[Model]
    object: str = "list"


def model_not_found(name: str, served: str) -> ApiError:
    """404 in OpenAI's words."""
    return ApiError(
        404, "model_not_found", f"no model {_short(name)!r} here; this server has {served!r}", param="model"
    )
