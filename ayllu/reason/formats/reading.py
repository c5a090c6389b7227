"""Reading a format: a state machine over token ids, with one over text for marks that are no token.

`Machine` takes control tokens by name and text as it comes, and makes Pieces: what kind of span, from
which token on, which text. It never goes back: what it has shown stays shown, and what could still be the
beginning of a mark waits. A call is shown when it is whole. Nothing that a model writes is an error here:
a call that can't be read becomes a call with its reason, or text where no mark said that it was one.

In a rendered conversation marks count only where the template wrote them; a person may type the same
text. In what a model samples there is nobody else, so marks count wherever they stand, but for the text
between quotation marks in a call's JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ayllu.reason.formats.form import Does, Format, Mark, UnreadableError
from ayllu.reason.transcript import Heard, Kind
from ayllu.tools.tool import whole as without_halves

_CALL_KEYS = ('"name"', '"type"', '"function"', '"parameters"', '"arguments"', '"id"')
_SAMPLED = (Kind.THINK, Kind.CALL)  # kinds that marks may open in a model's own turn


@dataclass
class Piece:
    """A span as it was read: it begins with token number `at` and ends where the next one begins.

    `whole`: its end was read, too. `calls`: what a CALL holds.
    """

    kind: Kind
    at: int
    text: str = ""
    whole: bool = False
    calls: tuple[Heard, ...] = ()


@dataclass(frozen=True)
class _Sign:
    """A character, the token that it came with, and whether a mark may be made of it."""

    char: str
    token: int
    free: bool


class Machine:
    """Reads one turn of a model (`sampled`) or a whole rendered conversation.

    `control`: the names that are tokens; all other marks are text. `kind`: what is being read first (None:
    nothing, a turn has to begin). `offered`: the tools that a call of the model's without a mark may be one
    of. `news` is what became readable since it was last emptied, as (kind, text).
    `said` are the tokens whose text is part of an answer.
    """

    def __init__(
        self,
        form: Format,
        control: frozenset[str],
        *,
        kind: Kind | None,
        sampled: bool,
        offered: frozenset[str] = frozenset(),
    ) -> None:
        self.form, self.kind, self.sampled, self.offered = form, kind, sampled, offered
        self.bare = bool(offered) and form.bare
        self.pieces: list[Piece] = []
        self.news: list[tuple[Kind, str]] = []
        self._texts = [name for name in form.marks if name not in control]
        self._firsts = frozenset(name[0] for name in self._texts)
        self._piece: Piece | None = None
        self._lead = 0  # the first token that belongs to no piece yet
        self._held: list[_Sign] = []  # may be the beginning of a mark
        self._blank = ""  # white space that waits for what follows
        self.said: list[int] = []  # tokens with text of an answer, in order
        self._tokens: list[int] = []  # those whose text waits
        self._last = -1  # the token of the last character that was taken
        self._head: str | None = None  # a turn's role while it is read
        self._inside: list[tuple[str, str]] = []  # of a call
        self._quoted = self._escaped = False
        self._unmarked = False  # the call has no mark: it may turn out to be text
        self._given = sampled and kind == Kind.THINK  # the prompt has opened the thought
        self._trims = self._given

    # ---- what comes in
    def control(self, name: str, token: int) -> None:
        """A control token. One that is no mark of this format says nothing."""
        self._take_all()
        mark = self.form.marks.get(name)
        if mark is not None:
            self._at(name, mark, token, token)

    def text(self, text: str, token: int, *, free: bool = True) -> None:
        """Text that came with a token; `free`: marks may be made of it. None: part of a character."""
        if not text:
            self._tokens.append(token)
            return
        if not self._texts or (self._firsts.isdisjoint(text) and not self._held):
            self._take(text, token, free)
            return
        for char in text:
            self._held.append(_Sign(char, token, free))
            self._settle()

    def end(self, token: int) -> None:
        """A token that ends the turn."""
        self._take_all()
        self._end(True, token + 1)
        self.kind = Kind.SAY if self.sampled else None

    def finish(self, *, ended: bool, tokens: int) -> list[Piece]:
        """All pieces; `ended`: the model ended its turn itself. `tokens`: how many there were."""
        self._take_all()
        self._end(ended, tokens)
        return self.pieces

    # ---- marks in text
    def _settle(self) -> None:
        """Take what can't begin a mark any more; act on a mark that is complete."""
        while self._held:
            text = "".join(sign.char for sign in self._held)
            open_ = self._held[0].free and not (self.kind == Kind.CALL and self._quoted)
            found = [name for name in self._texts if open_ and self._applies(name)]
            whole = next((name for name in found if text == name), None)
            if whole is not None and all(sign.free for sign in self._held):
                first, last = self._held[0].token, self._held[-1].token
                self._held.clear()
                self._at(whole, self.form.marks[whole], first, last)
                return
            if any(name.startswith(text) for name in found) and all(sign.free for sign in self._held):
                return
            sign = self._held.pop(0)
            self._take(sign.char, sign.token, sign.free)

    def _applies(self, name: str) -> bool:
        """Whether a mark that is text counts where we are."""
        mark = self.form.marks[name]
        if self.sampled and self.kind == Kind.THINK:  # a thought may speak of calls
            return mark.does == Does.END or (mark.does == Does.CLOSE and mark.kind == Kind.THINK)
        return self._counts(mark)

    def _counts(self, mark: Mark) -> bool:
        """Whether a mark means something where we are: each may speak for itself only.

        A model can't write what others say, and the templates of some families show in the system's
        message what a call looks like.
        """
        if self.sampled:
            return mark.does in (Does.END, Does.PART) or mark.kind in _SAMPLED
        if self.kind == Kind.SYSTEM:
            return mark.kind not in (*_SAMPLED, Kind.RESULT)
        return self.kind not in (Kind.USER, Kind.RESULT) or mark.kind not in _SAMPLED

    def _take_all(self) -> None:
        held, self._held = self._held, []
        for sign in held:
            self._take(sign.char, sign.token, sign.free)

    # ---- text
    def _take(self, text: str, token: int, free: bool) -> None:
        """Text that is no mark."""
        if self._head is not None:
            head, sign, text = (self._head + text).partition(self.form.head_ends or "\0")
            self._head = head
            if not sign:
                return
            self._begin_turn(token + 1)
        if self.kind == Kind.CALL:
            self._inside[-1] = (self._inside[-1][0], self._inside[-1][1] + text)
            self._quote(text)
            self._tokens.append(token)
            if self._unmarked and not _may_be_call(self._inside[0][1]):
                self._no_call()
        elif self.kind is not None and text:
            self._show(text, token, free)
        self._last = token if text else self._last

    def _show(self, text: str, token: int, free: bool) -> None:
        """Text of a span that is no call: white space waits until something follows it."""
        text, self._blank = self._blank + text, ""
        piece = self._piece
        if piece is None:
            if self._trims or not self.sampled or self.kind == Kind.THINK:
                text = text.lstrip()
            if not text.strip():
                self._blank = text
                if text:
                    self._tokens.append(token)
                return
            bare = self.bare if self.sampled else self.form.bare and free
            if self.kind == Kind.SAY and bare and text.lstrip()[0] == "{":
                self.kind = Kind.CALL
                self._piece = self._new(Kind.CALL)
                self._inside, self._unmarked = [("", "")], True
                self._quoted = self._escaped = False
                self._take(text, token, free)
                return
            assert self.kind is not None
            piece = self._piece = self._new(self.kind)
        self._tokens.append(token)
        shown = text.rstrip()
        self._blank = text[len(shown) :]
        self._say(piece, shown)

    def _say(self, piece: Piece, text: str) -> None:
        if piece.kind == Kind.SAY:
            seen = self.said[-1] if self.said else -1
            self.said += [t for t in sorted(set(self._tokens)) if t > seen]
        self._tokens = []
        if text:
            piece.text += text
            self.news.append((piece.kind, text))

    def _quote(self, text: str) -> None:
        """Keep track of whether we are inside of a JSON string."""
        for char in text:
            if self._escaped:
                self._escaped = False
            elif char == '"':
                self._quoted = not self._quoted
            elif char == "\\":
                self._escaped = self._quoted

    # ---- marks
    def _at(self, name: str, mark: Mark, first: int, last: int) -> None:
        """Act on a mark that reaches from one token to another (a control token: the same)."""
        if not self._counts(mark):
            return
        if mark.does == Does.OPEN:
            self._open(mark.kind, first, last)
        elif mark.does == Does.CLOSE:
            if self.kind == mark.kind or not self.sampled:
                self._close(True, last + 1)
                self.kind, self._given = mark.then, False
        elif mark.does == Does.HEAD:
            self._close(True, first)
            self.kind, self._head = None, ""
        elif mark.does == Does.HEAD_END and self._head is not None:
            self._begin_turn(last + 1)
        elif mark.does == Does.PART and self.kind == Kind.CALL:
            self._inside.append((name, ""))
            self._quoted = self._escaped = False
        elif mark.does == Does.PART and self.kind == Kind.RESULT:
            self._drop()  # what stood in front was the call's id
        elif mark.does == Does.END:
            self._end(True, last + 1)
            self.kind = Kind.SAY if self.sampled else None

    def _begin_turn(self, following: int) -> None:
        """What a head said: whose turn it is. A head of the model's own belongs to what comes before."""
        assert self._head is not None
        self.kind = self.form.roles.get(self._head.strip(), Kind.USER)
        self._head, self._trims = None, False
        if self.kind == Kind.SAY:
            self._lead = following

    def _open(self, kind: Kind | None, first: int, last: int) -> None:
        # A token that ends what came before and begins the mark stays with what came before.
        self._close(True, first + (first == self._last and self._piece is not None))
        self.kind, self._given = kind, False
        if kind == Kind.SAY:
            self._lead, self._trims = last + 1, False
        if kind == Kind.CALL:
            self._piece = self._new(Kind.CALL)
            self._inside, self._unmarked = [("", "")], False
            self._quoted = self._escaped = False

    def _new(self, kind: Kind) -> Piece:
        self.pieces.append(Piece(kind, self._lead))
        return self.pieces[-1]

    def _drop(self) -> None:
        if self._piece is not None:
            self.pieces.pop()
        self._piece, self._blank = None, ""

    def _end(self, whole: bool, following: int) -> None:
        """End a turn: an answer keeps its last white space, and a thought that was all becomes one."""
        piece, blank = self._piece, self._blank
        if self.kind == Kind.THINK and self._given and whole and piece is not None:
            piece.kind = Kind.SAY
            self.news.append((Kind.SAY, piece.text))
        elif self.kind == Kind.SAY and self.sampled and blank:
            if piece is None:
                piece = self._piece = self._new(Kind.SAY)
            self._blank = ""
            self._say(piece, blank)
        self._close(whole, following)

    def _close(self, whole: bool, following: int) -> None:
        """End the piece that is open, if one is; the next one begins with token `following`."""
        if self.kind == Kind.CALL:
            self._end_call(whole)
        elif self._piece is not None:
            self._piece.whole = whole
        self._piece, self._blank, self._tokens = None, "", []
        self._lead, self._trims = following, True

    def _end_call(self, whole: bool) -> None:
        """Read the call. One without a mark that can't be read was text."""
        piece = self._piece
        assert piece is not None
        try:
            piece.calls = tuple(_whole(call) for call in self.form.read(self._inside))
            if (
                self._unmarked
                and self.sampled
                and not self.offered.issuperset(call.name for call in piece.calls)
            ):
                piece.calls = ()
                raise UnreadableError("no tool of that name is on offer")
            piece.whole = True
        except (UnreadableError, RecursionError) as error:
            if self._unmarked:
                self._no_call()
                self._say(piece, self._blank)
                piece.whole = whole
                return
            name = self._inside[0][1].strip().partition("\n")[0][:100] if len(self._inside) > 1 else ""
            inside = "".join(text for _, text in self._inside).strip()
            why = str(error) if isinstance(error, UnreadableError) else "the call is nested too deeply"
            piece.calls = (Heard(name, inside, error=why),)
            piece.whole = whole
        self._say(piece, "\n".join(call.text for call in piece.calls))

    def _no_call(self) -> None:
        """What looked like a call without a mark is an answer that begins with a brace."""
        piece = self._piece
        assert piece is not None
        self.kind = piece.kind = Kind.SAY
        self._unmarked = False
        text = "".join(part for _, part in self._inside)
        shown = text.rstrip()
        self._blank = text[len(shown) :]
        self._say(piece, shown)


def _whole(call: Heard) -> Heard:
    """A call without halves of characters."""
    name, arguments, number, error = map(without_halves, (call.name, call.arguments, call.id, call.error))
    return Heard(name, arguments, number, error, call.texts)


def _may_be_call(text: str) -> bool:
    """Whether a text that begins with a brace may still become a call: by its first key."""
    key = text.lstrip()[1:].lstrip()
    return any(one.startswith(key[: len(one)]) for one in _CALL_KEYS)


def joined(news: Sequence[tuple[Kind, str]]) -> list[tuple[Kind, str]]:
    """Neighbours of one kind as one, but calls each for itself."""
    out: list[tuple[Kind, str]] = []
    for kind, text in news:
        if out and out[-1][0] == kind and kind != Kind.CALL:
            out[-1] = (kind, out[-1][1] + text)
        else:
            out.append((kind, text))
    return out
