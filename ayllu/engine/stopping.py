"""Stop strings: found in the text as it grows, wherever the borders between tokens fall.

All stop strings are looked for at once by the automaton of Aho and Corasick (1975): one step a character,
whatever their number. Its state is the longest end of the text that may yet become a stop string, which is
exactly the text that a stream must hold back. The string that is complete first wins (of those that end
at the same character the longest), so that the outcome doesn't depend on how the text was cut into tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ayllu.engine.budget import Thinking
from ayllu.engine.request import SamplingParams
from ayllu.errors import RequestError
from ayllu.text.tokenizer import StreamDecoder, Tokenizer

MAX_STRINGS, MAX_CHARACTERS = 64, 16_384


class StopStrings:
    """The automaton: one node for each beginning of a stop string. Made once, used by many readers.

    RequestError for more than MAX_STRINGS strings or MAX_CHARACTERS in all.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        found = list(strings)
        if len(found) > MAX_STRINGS or sum(map(len, found)) > MAX_CHARACTERS:
            raise RequestError(
                f"{len(found)} stop strings with {sum(map(len, found))} characters are too many",
                fix=f"give at most {MAX_STRINGS} with {MAX_CHARACTERS} characters in all",
            )
        self.next: list[dict[str, int]] = [{}]
        self.depth = [0]
        self.match = [0]  # characters of the longest stop string that ends here
        self.fail = [0]  # the node of the longest proper end that is a beginning, too
        for string in found:
            node = 0
            for sign in string:
                if sign not in self.next[node]:
                    self.next[node][sign] = len(self.next)
                    self.next.append({})
                    self.depth.append(self.depth[node] + 1)
                    self.match.append(0)
                    self.fail.append(0)
                node = self.next[node][sign]
            self.match[node] = len(string)
        queue = deque(self.next[0].values())
        while queue:
            node = queue.popleft()
            for sign, child in self.next[node].items():
                self.fail[child] = self.step(self.fail[node], sign)
                self.match[child] = self.match[child] or self.match[self.fail[child]]
                queue.append(child)

    def step(self, node: int, sign: str) -> int:
        """The node after one more character (amortised constant time)."""
        while node and sign not in self.next[node]:
            node = self.fail[node]
        return self.next[node].get(sign, 0)


class StopReader:
    """Token ids in, text out that holds no stop string and no broken character.

    `strings` are those of `params` (made here if not given). Of the first `min_tokens` tokens only the last
    may stop, and what is thought under a budget doesn't either. `stopped` is set by the token that
    completes a stop string; nothing comes out after that. Control tokens have no text, and no stop string
    reaches across them. `continues`: as for StreamDecoder.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        strings: StopStrings | None = None,
        *,
        continues: bool = False,
    ) -> None:
        self.strings = strings or StopStrings(params.stop_strings)
        self.min_tokens = params.min_tokens
        self.thinking = Thinking.begin(params.thinking) if params.thinking else None
        self.stopped = False
        self._hidden = tokenizer.vocabulary.hidden
        self._decoder = StreamDecoder(tokenizer, continues=continues)
        self._node = self._tokens = 0
        self._held = ""

    def push(self, token: int) -> str:
        """Text that is certain with this token: whole characters that begin no stop string."""
        self._tokens += 1
        thought = self.thinking is not None and self.thinking.belongs(token)
        if self.thinking is not None:
            self.thinking = self.thinking.after(token)
        if token in self._hidden:
            return self.flush()
        text = self._decoder.push(token)
        return text if thought else self._read(text)

    def flush(self) -> str:
        """What is left at the end: held-back text; U+FFFD for a character that never became whole."""
        text = self._read(self._decoder.flush())
        if not self.stopped:
            text, self._held, self._node = text + self._held, "", 0
        return text

    def _read(self, text: str) -> str:
        if self.stopped:
            return ""
        strings, node, sure = self.strings, self._node, self._held + text
        for at, sign in enumerate(text, len(self._held) + 1):
            node = strings.step(node, sign)
            if strings.match[node] and self._tokens >= self.min_tokens:
                self.stopped, self._held = True, ""
                return sure[: at - strings.match[node]]
        while node and not strings.next[node]:  # a whole one that didn't stop: only its end may go on
            node = strings.fail[node]
        self._node = node
        border = len(sure) - strings.depth[node]
        self._held = sure[border:]
        return sure[:border]


def text_until_stop(tokenizer: Tokenizer, token_ids: Iterable[int], params: SamplingParams) -> str:
    """The whole text of a finished sequence, up to its stop string."""
    reader = StopReader(tokenizer, params)
    return "".join([*map(reader.push, token_ids), reader.flush()])
