"""Byte-level BPE: trained on the mixture, exact for every text, single digits, unforgeable control tokens.

Byte-level BPE is from GPT-2 (Radford et al. 2019, section 2.2). Every digit is a piece of its own
(LLaMA, Touvron et al. 2023, section 2.1), because arithmetic is learnt digit by digit. Letters and
their combining marks stay together, so that Telugu syllables are not cut at every vowel sign.

Control tokens have ids that no text can produce: `encode` treats `<|user|>` typed by a person as
seven ordinary characters. Only the transcript writes control tokens.

The tokenizers of other models stand behind the same class; `vocabularies/` reads their files.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from ayllu.errors import ModelFileDamagedError, ModelFileMissingError
from ayllu.files import write_json, write_text
from ayllu.text.vocabularies.bytelevel import BYTE_OF
from ayllu.text.vocabularies.conventions import apply_conventions
from ayllu.text.vocabularies.gguf import load_gguf
from ayllu.text.vocabularies.huggingface import load_huggingface
from ayllu.text.vocabularies.sentencepiece import load_sentencepiece
from ayllu.text.vocabularies.tiktoken import load_tiktoken, looks_like_ranks
from ayllu.text.vocabularies.vocabulary import SPACE, Vocabulary, damaged, read_file

CONTROL = (
    "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|think|>", "<|/think|>",
    "<|tool|>", "<|/tool|>", "<|result|>", "<|/result|>", "<|answer|>", "<|pad|>",
    "<|reserved_0|>", "<|reserved_1|>", "<|reserved_2|>",
)  # fmt: skip

# One piece never crosses these borders: letters with their marks (and one leading space); a single
# digit; a bracket; a run of other signs (these two with one leading space); line ends; other white space. A
# bracket stands alone so that `(3+4)*(5-2)` is the same tokens wherever it is copied to: in `")*("` it isn't.
SPLIT = r" ?[\p{L}\p{M}]+|\p{N}| ?[()]| ?[^\s\p{L}\p{M}\p{N}()]+|[\r\n]+|\s+(?!\S)|\s"


class Tokenizer:
    """Text <-> token ids. `control` maps names to ids that text never becomes.

    Our own tokenizers have the names above at 0, 1, 2, ...; `native` says so. Those of other models have
    what their files name. `bos` and `eos` are the ids that begin a text and end an answer, `prefix` is
    what goes in front of a text that the model is to continue.
    """

    def __init__(self, inner: tokenizers.Tokenizer, vocabulary: Vocabulary | None = None) -> None:
        self.inner = inner
        self.native = vocabulary is None
        self.vocabulary = vocabulary or _own(inner)
        self.control = self.vocabulary.control
        self.bos, self.eos, self.prefix = self.vocabulary.bos, self.vocabulary.eos, self.vocabulary.prefix
        self._control_ids = frozenset(self.control.values()) | self.vocabulary.hidden
        self._bytes: dict[int, bytes] = {}  # of pieces that were asked for

    @property
    def vocab_size(self) -> int:
        """Pieces, control tokens included."""
        return self.inner.get_vocab_size()

    @property
    def drops_first_space(self) -> bool:
        """Whether encoding puts a space in front of a text, which decoding takes away (SentencePiece)."""
        return self.vocabulary.drops_first_space

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; never a control id."""
        return self._checked(text, self._encode(text))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` for many texts (in parallel inside the library, where it is exact)."""
        if self.vocabulary.encode is not None:
            return [self.encode(text) for text in texts]
        found = self.inner.encode_batch(texts, add_special_tokens=False)
        return [self._checked(text, each.ids) for text, each in zip(texts, found, strict=True)]

    def encode_after_control(self, text: str) -> list[int]:
        """`encode` for text that follows a control token, where some files put no space in front."""
        if self.vocabulary.continuation is None:
            return self.encode(text)
        return self._checked(text, self.vocabulary.continuation.encode(text, add_special_tokens=False).ids)

    def _encode(self, text: str) -> list[int]:
        if self.vocabulary.encode is not None:
            return self.vocabulary.encode(text)
        try:
            return self.inner.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the library has one kind for all: a character without a piece, say
            raise damaged("the vocabulary", str(error)) from error

    def _checked(self, text: str, ids: list[int]) -> list[int]:
        """`ids`, unless a foreign file's own rules led to a control id: then character by character."""
        if self.native or self._control_ids.isdisjoint(ids):
            return ids
        return [i for sign in text for i in self._encode(sign) if i not in self._control_ids]

    def decode(self, ids: Iterable[int], *, continues: bool = False) -> str:
        """Text of `ids`; control tokens are left out, incomplete characters become U+FFFD. `continues`:
        they go on with a text, so that a first space belongs to them."""
        stream = StreamDecoder(self, continues=continues)
        return "".join([*map(stream.push, ids), stream.flush()])

    def piece_bytes(self, token_id: int) -> bytes:
        """The bytes of one piece; none for control tokens and unknown ids."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._spelt(token_id)
        return known

    def _spelt(self, token_id: int) -> bytes:
        if token_id in self.vocabulary.hidden:
            return b""
        if (literal := self.vocabulary.literal.get(token_id)) is not None:
            return literal
        piece = (self.inner.id_to_token(token_id) if 0 <= token_id < 2**32 else None) or ""
        if self.vocabulary.spelling == "bytes":
            return bytes(BYTE_OF[sign] for sign in piece if sign in BYTE_OF)
        return piece.replace(SPACE, " ").encode()

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json as transformers reads them (our own only)."""
        assert self.native, "the files of a foreign vocabulary are copied, not written anew"
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
    def load(cls, path: Path | str) -> Tokenizer:
        """Read the vocabulary of a model folder or a GGUF file.

        In a folder: tokenizer.json, else tokenizer.model (SentencePiece's or Llama 3's), else the GGUF
        file in it. Errors: ModelFileMissingError, ModelFileDamagedError.
        """
        path = Path(path)
        if path.is_file():
            return cls._foreign(load_gguf(path))
        if (path / "tokenizer.json").is_file():
            found = load_huggingface(path / "tokenizer.json")
            if len(found.control.keys() & set(CONTROL)) > len(CONTROL) // 2:
                return cls(found.inner)
        elif (path / "tokenizer.model").is_file():
            ranks = looks_like_ranks(read_file(path / "tokenizer.model"))
            found = (load_tiktoken if ranks else load_sentencepiece)(path / "tokenizer.model")
        elif files := sorted(path.glob("*.gguf")):
            return cls._foreign(load_gguf(files[0]))
        else:
            raise ModelFileMissingError(
                f"{path / 'tokenizer.json'} is missing",
                why="there is no tokenizer.model and no GGUF file either",
                fix="copy the whole model folder again",
            )
        apply_conventions(found, path)
        return cls._foreign(found)

    @classmethod
    def _foreign(cls, found: Vocabulary) -> Tokenizer:
        if all(found.control.get(name) == number for number, name in enumerate(CONTROL)):
            # Our own model that came back in another container.
            tokenizer = cls(found.inner, found)
            tokenizer.native = True
            return tokenizer
        return cls(found.inner, found)


def _own(inner: tokenizers.Tokenizer) -> Vocabulary:
    """The vocabulary of a tokenizer that was trained here."""
    inner.encode_special_tokens = True  # control names in text are text
    ids = {name: inner.token_to_id(name) for name in CONTROL}
    if missing := [name for name, value in ids.items() if value is None]:
        raise ModelFileDamagedError(f"the tokenizer lacks the control tokens {', '.join(missing)}")
    control = {name: value for name, value in ids.items() if value is not None}
    end = (control["<|end|>"],)
    return Vocabulary(inner, "bytes", control, frozenset(control.values()), bos=control["<|bos|>"], eos=end)


class StreamDecoder:
    """Ids in, text out, holding back bytes until they are whole characters.

    A piece may begin in the middle of one character and end in the middle of another (Telugu letters
    have three bytes, emoji four), so the bytes are decoded as a stream, not the pieces one by one.
    Bytes that are no UTF-8 become U+FFFD, as in `Tokenizer.decode`. `continues`: the stream goes on with
    a text, so that a first space belongs to it.
    """

    def __init__(self, tokenizer: Tokenizer, *, continues: bool = False) -> None:
        self.tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._begins = tokenizer.drops_first_space and not continues

    def push(self, token_id: int) -> str:
        """Text that became complete with this token (often all of it, sometimes none)."""
        raw = self.tokenizer.piece_bytes(token_id)
        if self._begins and raw:
            if token_id != self.tokenizer.vocabulary.unknown:
                raw = raw.removeprefix(b" ")
            self._begins = not raw and self.tokenizer.vocabulary.drops_more_spaces
        return self._decoder.decode(raw)

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
