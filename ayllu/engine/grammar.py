"""Constrained output: at each place only the tokens that a grammar lets follow, by llguidance.

A JSON schema, a regular expression, a Lark grammar or a list of choices becomes an automaton over bytes;
walking the tree of all pieces through it gives the mask of tokens that may come next. The vocabulary is
told by the bytes of its pieces, so that byte-level BPE and SentencePiece are the same here.

Two rules. A grammar comes from a stranger: it is tried out in another process with little time and memory
before the engine sees it (`grammar_worker.py`). And it fails closed: whatever goes wrong, the sequence
ends with an error; no token comes out that the mask didn't allow.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import select
import subprocess
import sys
import threading
import time
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from collections.abc import Sequence as Ids
from pathlib import Path
from typing import cast

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from ayllu.engine.grammar_worker import LIMITS
from ayllu.engine.request import Grammar
from ayllu.errors import GrammarFailedError, RequestError, ResourceError
from ayllu.machine import end_worker
from ayllu.text.tokenizer import Tokenizer

MAX_SOURCE = 64 << 10  # characters
_KEPT = 64  # grammars remembered for each vocabulary
# Verdicts remembered for all, of each kind: more than answers may wait in a server, or the engine's thread
# would have to try out again what a stranger's many schemas (of another kind) have pushed out.
_VERDICTS = 256
_PATIENCE = 20.0  # seconds by the clock, for a machine that is busy; the worker's own limit is sooner


class Matcher:
    """A place in a grammar. GrammarFailedError as soon as anything is off."""

    def __init__(self, inner: LLMatcher, vocabulary: _Pieces) -> None:
        self._inner, self._vocabulary = inner, vocabulary

    def allowed(self, drafts: Ids[int] = ()) -> tuple[np.ndarray, bool] | None:
        """Which tokens may come after `drafts` -> (bool, one a token; whether the text may end here).

        None where the drafts themselves don't follow the grammar: then nothing after them will be used.
        """
        inner, size = self._inner, self._vocabulary.size
        with self._closed():
            taken = inner.try_consume_tokens(list(drafts)) if drafts else 0
            bits = inner.compute_bitmask() if taken == len(drafts) else b""
            if taken:
                inner.rollback(taken)
        if not bits:
            return None
        allowed = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")[: size + 1].astype(bool)
        allowed_V, ends = allowed[:size].copy(), bool(allowed[size])
        allowed_V[self._vocabulary.textless] = False
        return allowed_V, ends

    def again(self) -> Matcher:
        """Another one at this place."""
        return Matcher(self._inner.deep_copy(), self._vocabulary)

    def consume(self, token: int) -> None:
        """Take a token that was allowed."""
        with self._closed():
            self._inner.consume_token(token)

    @property
    def complete(self) -> bool:
        """Whether the text is whole and nothing can follow."""
        with self._closed():
            return self._inner.is_stopped() and self._inner.is_accepting()

    @contextlib.contextmanager
    def _closed(self) -> Iterator[None]:
        """Any failure of the library, told (its mask then lets the end through) or thrown, as our error."""
        why = ""
        try:
            yield
            why = self._inner.get_error() if self._inner.is_error() else ""
        except BaseException as error:  # a panic of its Rust code is no Exception
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            why = str(error) or type(error).__name__
        if why:
            raise GrammarFailedError(
                "the answer can't go on in its grammar",
                why=" ".join(why.split())[:300],
                fix="simplify the schema or grammar",
            )


def matcher(grammar: Grammar, tokenizer: Tokenizer, vocab_size: int) -> Matcher:
    """A matcher at the beginning of `grammar`, for a model with `vocab_size` tokens.

    A grammar that was not seen before takes some milliseconds, a hostile one up to two seconds; a
    server may call this in a thread of its own first. Raises RequestError for what can't be served.
    """
    pieces = _pieces(tokenizer, vocab_size)
    with pieces.lock:
        known = pieces.grammars.get(grammar)
    compiled = checked(grammar) if known is None else ""  # may take long, for which others needn't wait
    with pieces.lock:
        if known is None:
            known = pieces.grammars.get(grammar)
        if known is None:
            limits = LLParserLimits(**LIMITS)
            known = LLMatcher(pieces.inner, compiled, log_level=0, limits=limits)
            if known.is_error():
                raise _refused(grammar, known.get_error())
            pieces.grammars[grammar] = known
            while len(pieces.grammars) > _KEPT:
                pieces.grammars.popitem(last=False)
        if grammar in pieces.grammars:
            pieces.grammars.move_to_end(grammar)
        return Matcher(known.deep_copy(), pieces)


def _refused(grammar: Grammar, why: str) -> RequestError:
    return RequestError(
        f"this {grammar.kind} can't be used to constrain the answer",
        why=" ".join(why.split())[:400],
        fix="simplify it; the documentation lists what is supported",
    )


# ---- vocabularies
class _Pieces:
    """A vocabulary as llguidance wants it: the bytes of each piece, and one token more for the end."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.size, self.lock = size, threading.Lock()
        self.grammars: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self.tokens = [tokenizer.piece_bytes(i) for i in range(size)]
        # A grammar gets at no control token, neither by its number nor, where a family's have a text (Qwen's
        # <think>), inside of a string: whoever reads the answer would obey it.
        control = frozenset(tokenizer.control.values())
        barred = [i for i, piece in enumerate(self.tokens) if not piece or i in control]
        self.textless = np.array(barred, np.int64)
        self.tokens.append(b"<end>")
        self.eos_token_id, self.bos_token_id, self.special_token_ids = size, None, [size]
        usual = [(piece, i) for i, piece in enumerate(self.tokens[:size]) if piece and i not in control]
        self._ids = dict(reversed(usual))
        self._longest = max(map(len, self._ids), default=1)
        self._tokenizer = weakref.ref(tokenizer)
        self.inner = LLTokenizer(TokenizerWrapper(self), n_vocab=size + 1)

    def __call__(self, text: bytes | str) -> list[int]:
        """The tokens for a text that must come: as the model knows it, or else the longest pieces."""
        raw = text if isinstance(text, bytes) else text.encode()
        if (tokenizer := self._tokenizer()) is not None:
            try:
                ids = tokenizer.encode(raw.decode())
            except Exception:  # half a character, or one that no piece has
                ids = []
            if b"".join(self.tokens[i] for i in ids if i < self.size) == raw:
                return ids
        ids, at = [], 0
        while at < len(raw):
            for end in range(min(len(raw), at + self._longest), at, -1):
                if (found := self._ids.get(raw[at:end])) is not None:
                    ids.append(found)
                    at = end
                    break
            else:
                return ids
        return ids


_vocabularies: weakref.WeakKeyDictionary[Tokenizer, dict[int, _Pieces]] = weakref.WeakKeyDictionary()
_vocabularies_lock = threading.Lock()


def _pieces(tokenizer: Tokenizer, size: int) -> _Pieces:
    with _vocabularies_lock:
        sizes = _vocabularies.setdefault(tokenizer, {})
        if size not in sizes:
            sizes[size] = _Pieces(tokenizer, size)
        return sizes[size]


# ---- trying out
_verdicts: defaultdict[str, OrderedDict[Grammar, dict[str, str]]] = defaultdict(OrderedDict)  # by kind
_worker: subprocess.Popen[bytes] | None = None
_worker_lock, _verdicts_lock = threading.Lock(), threading.Lock()
_TOO_MUCH = {"error": "compiling it takes too much time or memory"}
_closing = False  # the program ends


@atexit.register
def _close() -> None:
    """The worker ends with the program; a thread that is asking it just now gets no answer, nor another."""
    global _closing
    _closing = True
    if _worker is not None:
        end_worker(_worker)


def checked(grammar: Grammar) -> str:
    """llguidance's form of a grammar that has been tried out. Raises RequestError."""
    if len(grammar.source) > MAX_SOURCE:
        raise _refused(grammar, f"it has {len(grammar.source)} characters, {MAX_SOURCE} at most are read")
    if (verdict := _known_verdict(grammar)) is None:
        with _worker_lock:
            if (verdict := _known_verdict(grammar)) is None:
                request = json.dumps({"kind": grammar.kind, "source": grammar.source}) + "\n"
                # One that died may have died of something else than the question: it is asked once more.
                verdict = _ask(request.encode()) or _ask(request.encode()) or _TOO_MUCH
                with _verdicts_lock:
                    kept = _verdicts[grammar.kind]
                    kept[grammar] = verdict
                    while len(kept) > _VERDICTS:
                        kept.popitem(last=False)
    if "error" in verdict:
        raise _refused(grammar, verdict["error"])
    return verdict["grammar"]


def _known_verdict(grammar: Grammar) -> dict[str, str] | None:
    """What was found before, without waiting for what is being tried out now."""
    with _verdicts_lock:
        kept = _verdicts[grammar.kind]
        if grammar in kept:
            kept.move_to_end(grammar)
        return kept.get(grammar)


def _ask(request: bytes) -> dict[str, str] | None:
    """The worker's answer; None where it dies, or doesn't answer. Raises ResourceError without one."""
    global _worker
    if _closing:
        return None
    if _worker is None or _worker.poll() is not None:
        try:
            _worker = subprocess.Popen(
                [sys.executable, "-I", str(Path(__file__).with_name("grammar_worker.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in a terminal is for us
            )
        except OSError as error:
            raise ResourceError(
                "a grammar can't be tried out",
                why=f"no process can be started: {error.strerror}",
                fix="free some memory or processes and try again",
            ) from error
    process = _worker
    assert process.stdin is not None and process.stdout is not None
    line, until = b"", time.monotonic() + _PATIENCE
    try:
        process.stdin.write(request)
        process.stdin.flush()
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, until - time.monotonic()))
            part = process.stdout.read1(1 << 20) if ready else b""  # type: ignore[attr-defined]
            if not part:
                break
            line += part
    except (OSError, ValueError):  # ValueError: its pipes were closed, the program ends
        line = b""
    if not line.endswith(b"\n"):
        end_worker(process)
        _worker = None
        return None
    return cast(dict[str, str], json.loads(line))
