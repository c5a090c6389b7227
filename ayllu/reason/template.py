"""Chat templates of other models: a conversation as the text, and the ids, that a model was trained on.

A template is a Jinja program in the model's folder (chat_template.jinja, or in tokenizer_config.json, or
in a GGUF file's metadata). It is rendered in a process of its own (`template_worker.py`) with limits on
processor time, memory and output; whatever it does there, this process gets text or a typed error.

A template writes control tokens as text, and a user may type the same text. To tell them apart, the
conversation is rendered a second time in disguise: every character that a person wrote is replaced by a
private one that occurs nowhere else. What comes out in disguise came from a person and is encoded as
plain text; what does not, the template wrote. Where the template looks into what it is given (splits it,
writes JSON) and the disguise changes the result, control tokens' names in the conversation are
disguised instead, and nothing else.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ayllu.errors import ModelFileDamagedError, RequestError
from ayllu.reason.formats import format_of
from ayllu.text.tokenizer import Tokenizer
from ayllu.text.vocabularies.conventions import read_object, token_name
from ayllu.tools.tool import whole as without_halves

SECONDS = 2.0  # of processor time for one rendering
MEMORY = 256 << 20
MAX_OUTPUT = 16 << 20  # characters
MAX_SOURCE = 1 << 20
OPTIONS = frozenset({"enable_thinking", "thinking"})  # what a request may pass to a template

_WORKER = Path(__file__).with_name("template_worker.py")
_WHITE = re.compile(r"(?:\s|\\+(?:[nrtf]|u00[01][0-9a-f]))*")  # as it is, or as JSON escapes it
_PRIVATE = range(0xF0000, 0xFFFFE)  # Unicode's first supplementary private-use plane


class Renderer:
    """Worker processes, each used by one caller at a time and kept warm between renderings."""

    def __init__(self, *, seconds: float = SECONDS, memory: int = MEMORY, limit: int = MAX_OUTPUT) -> None:
        self.seconds, self.memory, self.limit = seconds, memory, limit
        self._idle: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()
        atexit.register(self.close)

    def render(self, template: str, values: list[dict[str, Any]]) -> list[str]:
        """The template with each of `values`.

        Errors: RequestError when the template refuses the conversation; ModelFileDamagedError when it is
        no template, or does what it may not: time, memory, output, or the sandbox's walls.
        """
        if len(template) > MAX_SOURCE:
            raise _fault(f"it has more than {MAX_SOURCE} characters")
        request = json.dumps(
            {"template": template, "values": values, "seconds": self.seconds, "limit": self.limit}
        ).encode()
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is None or worker.poll() is not None:
            worker = self._start()
        try:
            said = json.loads(self._exchange(worker, request))
        except (OSError, ValueError, EOFError, TimeoutError) as error:
            _end(worker)
            raise _fault("it used too much time or memory, and its process was ended") from error
        except BaseException:  # Ctrl-C: the answer still to come must not be taken for another's
            _end(worker)
            raise
        with self._lock:
            keep = len(self._idle) < 4
            if keep:
                self._idle.append(worker)
        if not keep:
            _end(worker)
        if "refused" in said:
            raise RequestError(f"this model's chat format can't write the conversation: {said['refused']}")
        if "fault" in said:
            raise _fault(said["fault"])
        return list(said["texts"])

    def close(self) -> None:
        """End all idle workers."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            _end(worker)

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", str(_WORKER), str(self.memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
            start_new_session=True,
        )

    def _exchange(self, worker: subprocess.Popen[bytes], request: bytes) -> bytes:
        """Send and receive; a worker that neither answers nor dies within a generous time is given up."""
        assert worker.stdin is not None and worker.stdout is not None
        until = time.monotonic() + 10 * self.seconds + 20  # the machine may be busy with other things
        out, into = worker.stdin.fileno(), worker.stdout.fileno()
        os.set_blocking(out, False)
        data = memoryview(struct.pack("<I", len(request)) + request)
        reply = bytearray()
        wanted = 4
        while len(reply) < wanted:
            left = until - time.monotonic()
            readable, writable, _ = select.select([into], [out] if data else [], [], max(left, 0))
            if left <= 0:
                raise TimeoutError
            if writable:
                data = data[os.write(out, data[: 1 << 16]) :]
            if readable:
                piece = os.read(into, 1 << 16)
                if not piece:
                    raise EOFError
                reply += piece
            if wanted == 4 and len(reply) >= 4:
                wanted = 4 + struct.unpack("<I", reply[:4])[0]
                if wanted > 32 * self.limit:
                    raise ValueError("the answer is too long")
        return bytes(reply[4:])


def _end(worker: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        worker.kill()
    for pipe in (worker.stdin, worker.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()
    worker.wait()


def _fault(why: str) -> ModelFileDamagedError:
    return ModelFileDamagedError(
        "the model's chat template can't be used",
        why=why,
        fix="use the original chat_template.jinja of the model",
    )


_shared = Renderer()


@dataclass(frozen=True)
class Run:
    """One control token (then `name` says which), or the text between two of them.

    `typed` has a 1 for each character that is known to be a person's.
    """

    ids: tuple[int, ...]
    text: str
    name: str = ""
    typed: bytes = b""


@dataclass(frozen=True)
class Rendered:
    """A conversation's text and its ids."""

    text: str
    runs: tuple[Run, ...]

    @property
    def ids(self) -> list[int]:
        """All token ids."""
        return [i for run in self.runs for i in run.ids]


class ChatTemplate:
    """A model's chat template with the tokenizer that reads its output."""

    def __init__(
        self, source: str, tokenizer: Tokenizer, special: dict[str, str], *, renderer: Renderer | None = None
    ) -> None:
        self.source, self.tokenizer, self.special = source, tokenizer, special
        self.renderer = renderer or _shared
        self.form = format_of(source)
        names = sorted(tokenizer.control, key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, names)) or "(?!)")
        # What may be the beginning or the end of a name, when the template puts texts side by side.
        self._heads = {name[:size] for name in names for size in range(1, len(name))}
        self._tails = {name[size:] for name in names for size in range(1, len(name))}
        self._longest = max(map(len, names), default=0)
        # Marks that are no tokens are told apart by who wrote them.
        marks = [mark for mark in self.form.marks if mark not in tokenizer.control]
        self._marks = re.compile("|".join(map(re.escape, marks)) or "(?!)")
        self._looked_for = sorted((n for n in (*names, *marks) if n in source), key=len, reverse=True)

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        options: dict[str, Any] | None = None,
    ) -> Rendered:
        """Text and ids of a conversation; the ids of control tokens come from the template only.

        `options` may have the keys of OPTIONS. Errors: RequestError, ModelFileDamagedError as in Renderer.
        """
        if unknown := set(options or {}) - OPTIONS:
            raise RequestError(f"the option {min(unknown)!r} is not one of {', '.join(sorted(OPTIONS))}")
        given = _mapped({"messages": messages, "tools": tools}, without_halves)
        around = {
            **self.special,
            **(options or {}),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        disguise = _Disguise(self.source, given, self.special)
        whole = _mapped(given, lambda text: self._whole(text, disguise))
        names = _mapped(given, lambda text: self._named(text, disguise))
        plain, hidden = self.renderer.render(self.source, [{**around, **given}, {**around, **whole}])
        if disguise.off(hidden) == plain:
            return Rendered(plain, self._runs(hidden, disguise))
        if names == given:
            return Rendered(plain, self._runs(plain, disguise))
        (hidden,) = self.renderer.render(self.source, [{**around, **names}])
        return Rendered(disguise.off(hidden), self._runs(hidden, disguise))

    def _whole(self, text: str, disguise: _Disguise) -> str:
        """All of `text` in disguise, but for names that the template looks for itself (</think>).

        Such a name stays as it is behind a private mark, so that one which is left in the output is known
        to be a person's.
        """
        if not self._looked_for:
            return disguise.on(text)
        apart = re.compile(r"(\s*(?:" + "|".join(map(re.escape, self._looked_for)) + "))")
        parts = apart.split(text)
        return "".join(
            disguise.mark + part if number % 2 else disguise.on(part) for number, part in enumerate(parts)
        )

    def _named(self, text: str, disguise: _Disguise) -> str:
        """`text` with control tokens' names in disguise, and what its ends could add to one."""
        text = self._marks.sub(lambda found: disguise.mark + found.group(), text)
        text = self._names.sub(lambda found: disguise.on(found.group()), text)
        for size in range(min(self._longest, len(text)), 0, -1):
            if text[-size:] in self._heads:
                text = text[:-size] + disguise.on(text[-size:])
            if text[:size] in self._tails:
                text = disguise.on(text[:size]) + text[size:]
        return text

    def _runs(self, text: str, disguise: _Disguise) -> tuple[Run, ...]:
        """A text in disguise, cut at control tokens: those are names outside the disguise."""
        runs: list[Run] = []
        at, first, marked = 0, True, disguise.marked(text)
        while True:
            found = self._names.search(text, at)
            while found and found.start() in marked:
                found = self._names.search(text, found.start() + 1)
            part, typed = disguise.known(text[at : found.start() if found else len(text)], self._looked_for)
            if part:
                encode = self.tokenizer.encode if first else self.tokenizer.encode_after_control
                runs.append(Run(tuple(encode(part)), part, typed=typed))
            if found is None:
                return tuple(runs)
            runs.append(Run((self.tokenizer.control[found.group()],), found.group(), found.group()))
            at, first = found.end(), False


class _Disguise:
    """A private character for each character of a conversation; none of them occurs in it already.

    White space stays, because templates trim it, and so do the signs that JSON escapes.
    """

    def __init__(self, *around: Any) -> None:
        taken: set[str] = set()
        for value in around:
            _mapped(value, lambda text: taken.update(text) or text)  # type: ignore[func-returns-value]
        free = (chr(code) for code in _PRIVATE if chr(code) not in taken)
        self.mark = next(free)
        worn = [c for c in sorted(taken) if not c.isspace() and c.isprintable() and c not in '"\\']
        self._on = dict(zip(map(ord, worn), free, strict=False))
        self._off: dict[int, str] = {ord(private): chr(plain) for plain, private in self._on.items()}
        self._off[ord(self.mark)] = ""

    def on(self, text: str) -> str:
        """`text` in disguise."""
        return text.translate(self._on)

    def off(self, text: str) -> str:
        """The text as it was."""
        return text.translate(self._off)

    def known(self, text: str, names: Iterable[str]) -> tuple[str, bytes]:
        """The text as it was, and which of its characters are a person's: in disguise, or a marked name."""
        plain: list[str] = []
        typed = bytearray()
        until = 0
        for at, char in enumerate(text):
            if char == self.mark:
                begin = self.named(text, at)
                until = begin + next((len(n) for n in names if text.startswith(n, begin)), 0)
                continue
            worn = self._off.get(ord(char))
            plain.append(char if worn is None else worn)
            typed.append(worn is not None or at < until)
        return "".join(plain), bytes(typed)

    def named(self, text: str, at: int) -> int:
        """Where the name of the mark at `at` begins: behind white space, also as JSON escapes it."""
        found = _WHITE.match(text, at + 1)
        return found.end() if found else at + 1

    def marked(self, text: str) -> set[int]:
        """Where names begin that were marked as a person's."""
        return {self.named(text, at) for at, char in enumerate(text) if char == self.mark}


def _mapped(value: Any, change: Callable[[str], str], key: str = "") -> Any:
    """`value` with all texts in it changed, but for roles and types that are plain words.

    Keys are changed where they are no plain words: a tool's arguments have names that a person chose. They
    may be called role or type, too, and hold any text.
    """
    if isinstance(value, str):
        return value if key in ("role", "type") and value.isidentifier() else change(value)
    if isinstance(value, dict):
        return {
            name if name.isidentifier() else change(name): _mapped(inner, change, name)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_mapped(inner, change, key) for inner in value]
    return value


def load_template(path: Path, tokenizer: Tokenizer, *, named: str = "default") -> ChatTemplate | None:
    """The chat template of a model folder or GGUF file; None when there is none.

    Of several named ones it is the one called "default" (or the first), or another by its name; a model
    with one template has none by another name. Errors: ModelFileDamagedError.
    """
    spoken = read_object(path / "tokenizer_config.json") if path.is_dir() else {}
    source = _source(path, spoken, tokenizer, named)
    if source is None:
        return None
    special = {
        key: name
        for key in ("bos_token", "eos_token", "unk_token", "pad_token")
        if (name := token_name(spoken.get(key))) is not None
    }
    by_id = {number: name for name, number in tokenizer.control.items()}
    for key, number in (("bos_token", tokenizer.bos), ("eos_token", next(iter(tokenizer.eos), None))):
        if number in by_id:
            special.setdefault(key, by_id[number])
    return ChatTemplate(source, tokenizer, special)


def _source(path: Path, spoken: dict[str, Any], tokenizer: Tokenizer, named: str) -> str | None:
    alone = named == "default"
    file = path / ("chat_template.jinja" if alone else f"additional_chat_templates/{named}.jinja")
    if path.is_dir() and file.is_file():
        try:
            return file.read_bytes()[: 4 * MAX_SOURCE].decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise _fault(str(error)) from error
    found = spoken.get("chat_template")
    if found is None:
        found = tokenizer.vocabulary.chat_templates or None
    if isinstance(found, list):
        entries: Iterable[Any] = (entry for entry in found if isinstance(entry, dict))
        found = {entry.get("name"): entry.get("template") for entry in entries}
    if isinstance(found, dict):
        found = found.get(named, next(iter(found.values()), None) if alone else None)
    elif not alone:
        return None
    if found is not None and not isinstance(found, str):
        raise _fault("chat_template in tokenizer_config.json is not text")
    return found
