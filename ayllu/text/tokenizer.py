"""Byte-level BPE: trained on the mixture, exact for every text, single digits, unforgeable control tokens.

Byte-level BPE is from GPT-2 (Radford et al. 2019, section 2.2). Every digit is a piece of its own
(LLaMA, Touvron et al. 2023, section 2.1), because arithmetic is learnt digit by digit. Letters and
their combining marks stay together, so that Telugu syllables are not cut at every vowel sign.

Control tokens have ids that no text can produce: `encode` treats `<|user|>` typed by a person as
seven ordinary characters. Only the transcript writes control tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from ayllu.errors import ModelFileDamagedError, ModelFileMissingError
from ayllu.files import write_json, write_text

CONTROL = (
    "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|think|>", "<|/think|>",
    "<|tool|>", "<|/tool|>", "<|result|>", "<|/result|>", "<|answer|>", "<|pad|>",
    "<|reserved_0|>", "<|reserved_1|>", "<|reserved_2|>",
)  # fmt: skip

# One piece never crosses these borders: letters with their marks (and one leading space); a single
# digit; a run of other signs (and one leading space); line ends; other white space.
SPLIT = r" ?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|[\r\n]+|\s+(?!\S)|\s"


def _byte_signs() -> dict[str, int]:
    """GPT-2's printable stand-ins: bytes that are visible in Latin-1 stand for themselves, the other 68
    for U+0100, U+0101, ... in order."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in visible]
    return {chr(b): b for b in visible} | {chr(0x100 + i): b for i, b in enumerate(rest)}


BYTE_OF = _byte_signs()


class Tokenizer:
    """Text <-> token ids. `control` maps the names above to their ids (0, 1, 2, ...)."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        inner.encode_special_tokens = True  # control names in text are text
        self.inner = inner
        ids = {name: inner.token_to_id(name) for name in CONTROL}
        if missing := [name for name, value in ids.items() if value is None]:
            raise ModelFileDamagedError(f"the tokenizer lacks the control tokens {', '.join(missing)}")
        self.control: dict[str, int] = {name: value for name, value in ids.items() if value is not None}
        self._control_ids = frozenset(self.control.values())
        self._bytes: dict[int, bytes] = {}  # of pieces that were asked for

    @property
    def vocab_size(self) -> int:
        """Pieces, control tokens included."""
        return self.inner.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; never a control id."""
        return self.inner.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` for many texts (in parallel inside the library)."""
        return [e.ids for e in self.inner.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; control tokens are left out, incomplete characters become U+FFFD."""
        return self.inner.decode([i for i in ids if i not in self._control_ids], skip_special_tokens=False)

    def piece_bytes(self, token_id: int) -> bytes:
        """The bytes of one piece; none for control tokens and unknown ids."""
        known = self._bytes.get(token_id)
        if known is None:
            piece = None if token_id in self._control_ids else self.inner.id_to_token(token_id)
            known = self._bytes[token_id] = bytes(BYTE_OF[sign] for sign in piece or "")
        return known

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json as transformers reads them."""
        write_text(folder / "tokenizer.json", self.inner.to_str(pretty=True) + "\n")
        write_json(
            folder / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<|bos|>",
                "eos_token": "<|end|>",
                "pad_token": "<|pad|>",
                "add_bos_token": False,
                "clean_up_tokenization_spaces": False,
                "split_special_tokens": True,
            },
        )

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read tokenizer.json from a folder. Errors: ModelFileMissingError, ModelFileDamagedError."""
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise ModelFileMissingError(f"{path} is missing", fix="copy the whole model folder again")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises plain Exception for every malformed file
            if isinstance(error, ModelFileDamagedError):
                raise
            raise ModelFileDamagedError(f"{path} is not a tokenizer", why=str(error)) from error


class StreamDecoder:
    """Ids in, text out, holding back bytes until they are whole characters.

    A piece may begin in the middle of one character and end in the middle of another (Telugu letters
    have three bytes, emoji four), so the bytes are decoded as a stream, not the pieces one by one.
    Bytes that are no UTF-8 become U+FFFD, as in `Tokenizer.decode`.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Text that became complete with this token (often all of it, sometimes none)."""
        return self._decoder.decode(self.tokenizer.piece_bytes(token_id))

    def flush(self) -> str:
        """What is left at the end of the stream: U+FFFD for a character that never became whole."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE with `vocab_size` pieces in all (control tokens and 256 bytes included)."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in CONTROL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return Tokenizer(inner)
