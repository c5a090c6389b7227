"""A loaded model with all that an answer at the terminal needs: tools, sampling, limits, a turn to replay."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ayllu.console import ask_at_terminal, confirm_at_terminal, harmless, tell
from ayllu.errors import AylluError
from ayllu.serve.options import EngineOptions

if TYPE_CHECKING:
    from ayllu.engine.engine import SamplingParams
    from ayllu.engine.request import Grammar
    from ayllu.reason.foreign import TemplateChat
    from ayllu.reason.loop import Event
    from ayllu.reason.recorded import RecordedTurn
    from ayllu.reason.transcript import Chat, Transcript
    from ayllu.tools.session import Record, Rules
    from ayllu.tools.tool import Toolbox

# For a model that continues texts and whose folder doesn't say how to sample: small ones, as most such are,
# lose the thread at 1, and go round in circles at 0.
STORY_TEMPERATURE = 0.5

# All tool calls of one answer together: somebody is waiting.
TOOL_SECONDS = 120.0


@dataclass
class Talk:
    """A loaded model with all that an answer needs."""

    engine: Any
    chat: Chat | TemplateChat
    toolbox: Toolbox
    params: SamplingParams
    rules: Rules | None = None
    constrain: bool = False  # hold calls to the tools' schemas while they are written
    budget: int | None = None  # tokens of thinking of one answer
    says_budget: bool = False
    recorded: Sequence[Record] | None = None  # the calls of a turn that is replayed: nothing is run then

    def begin(self, user: str) -> Transcript:
        """A new conversation's first turn; the tools on offer are named in it, and the budget where the model
        was taught to mind it."""
        from ayllu.reason.thinking import budget_words

        system = budget_words(self.budget) if self.says_budget and self.budget is not None else ""
        return self.chat.start(user, system=system, tools=self.toolbox.tools)

    def bounded(self, transcript: Transcript) -> SamplingParams:
        """How the answer to a conversation is sampled. RequestError where thinking can't be bounded."""
        from ayllu.reason.thinking import bounded

        return bounded(self.params, self.chat, transcript, self.budget)

    def go_on(self, transcript: Transcript, user: str) -> Transcript:
        """A further turn."""
        from ayllu.reason.transcript import Kind

        return self.chat.add(transcript, Kind.USER, user)

    def answer(self, transcript: Transcript) -> Iterator[Event]:
        """The events of one answer (ayllu.reason.loop)."""
        from ayllu.reason.loop import answer_stream

        return answer_stream(
            self.engine,
            self.chat,
            transcript,
            self.toolbox,
            self.bounded(transcript),
            rules=self.rules,
            constrain=self.constrain,
            recorded=self.recorded,
        )


@contextlib.contextmanager
def load_talk(
    folder: Path,
    *,
    tools: bool,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    conversing: bool = False,
    engine: EngineOptions | None = None,
    further: Sequence[str] = (),
    budget: int | None = None,
    replay: RecordedTurn | None = None,
) -> Iterator[Talk]:
    """Load the model of `folder`; what is None is as its generation_config.json says.

    `further` tools are those of `ayllu.tools.named`; `budget` is of thinking, in tokens. RequestError when
    it is to be `conversing` and has no chat format. With `replay` its tools, its sampling and its budget are
    taken instead.
    """
    from ayllu.engine.engine import Engine, SamplingParams
    from ayllu.reason.foreign import Continuation, chat_of, no_chat_format
    from ayllu.reason.thinking import taught
    from ayllu.serve.service import SamplingDefaults
    from ayllu.text.tokenizer import Tokenizer
    from ayllu.tools.named import open_tools
    from ayllu.tools.session import Rules
    from ayllu.tools.tool import Toolbox

    tokenizer = Tokenizer.load(folder)
    chat = chat_of(folder, tokenizer)
    if conversing and isinstance(chat, Continuation):
        raise no_chat_format()
    fallback = SamplingDefaults(temperature=STORY_TEMPERATURE if isinstance(chat, Continuation) else 1.0)
    usual = SamplingDefaults.said_by(folder) or fallback
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=usual.temperature if temperature is None else temperature,
        top_k=usual.top_k,
        top_p=usual.top_p,
        min_p=usual.min_p,
        seed=seed,
    )
    how = (engine or EngineOptions()).arguments()
    # What a model of ours has been taught; another's is offered nothing that wasn't asked for.
    usual_tools = ["calculator"] if tools and tokenizer.native else []
    with contextlib.ExitStack() as stack:
        ask = ask_at_terminal if sys.stdin.isatty() else None
        if replay is not None:
            params, budget, toolbox = replay.params(), replay.thinking_budget, replay.toolbox()
        else:
            wishes = [*usual_tools, *further]
            offered = open_tools(wishes, stack, ask=ask, tell=lambda text: tell(harmless(text)))
            toolbox = Toolbox(offered, confirm=confirm_at_terminal)
        _try_calls_out(params, chat, toolbox)
        opened = stack.enter_context(Engine(folder, tokenizer=tokenizer, **how))
        rules = Rules(seconds=TOOL_SECONDS, once=True)
        says = budget is not None and tokenizer.native and taught(folder)
        calls = None if replay is None else replay.calls
        yield Talk(opened, chat, toolbox, params, rules, True, budget, says, calls)


def _try_calls_out(params: SamplingParams, chat: Chat | TemplateChat, toolbox: Toolbox) -> None:
    """Begin to try the grammar of calls out, which is another process's work, while the weights are read."""
    from ayllu.engine.grammar import checked
    from ayllu.reason.loop import held_to_tools

    def work(grammar: Grammar) -> None:
        with contextlib.suppress(AylluError):  # it comes again where it matters
            checked(grammar)

    held = held_to_tools(params, chat, toolbox).enclosed
    if held is not None and held.grammar is not None:
        threading.Thread(target=work, args=(held.grammar,), daemon=True).start()
