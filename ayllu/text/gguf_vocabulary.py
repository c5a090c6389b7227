"""A folder's tokenizer as the metadata of a GGUF file, and such metadata as a folder's tokenizer files.

llama.cpp knows two kinds: "gpt2" (byte-level BPE: pieces, merges and the name of the pattern that splits text
into words, each pattern being a case in its code) and "llama" (SentencePiece's BPE: pieces with scores).
The way back gives the files that transformers reads: tokenizer.json for the first, tokenizer.model for the
second. The files beside them say which tokens begin and end a text, and how a conversation is written.

No pattern of llama.cpp is exactly that of our own tokenizer. The nearest, "qwen35", also takes single digits
and keeps marks with their letters; ids differ where a word follows an apostrophe without a space before it
('sun) and in lines that end in spaces. Our own reader takes the whole tokenizer.json, which travels along.
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ayllu.errors import ModelFileDamagedError, RequestError
from ayllu.files import own_file
from ayllu.text.tokenizer import SPLIT, Tokenizer
from ayllu.text.vocabularies.bytelevel import GPT2, LLAMA3, QWEN2
from ayllu.text.vocabularies.conventions import read_object, token_name
from ayllu.text.vocabularies.gguf import BEGIN, PATTERNS, TEMPLATES
from ayllu.text.vocabularies.sentencepiece import PieceModel, Type, read_model
from ayllu.text.vocabularies.tiktoken import load_tiktoken, looks_like_ranks
from ayllu.text.vocabularies.vocabulary import read_file

QWEN35 = QWEN2.replace(r"]?\p{L}+", r"]?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
_PRE = {LLAMA3: "llama-bpe", QWEN2: "qwen2", QWEN35: "qwen35", GPT2: "gpt-2", SPLIT: "qwen35"}
_KEY = "tokenizer.ggml."
_WHOLE = "tokenizer.huggingface.json"
_TEMPLATE = "tokenizer.chat_template"
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, struct.error)
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


# ---- out
def gguf_values(folder: Path, rows: int) -> dict[str, Any] | None:
    """The `tokenizer.*` metadata for the model in `folder`, whose embedding has `rows` rows; None where the
    folder has no tokenizer.

    Errors: RequestError for a tokenizer that llama.cpp has no kind for, ModelFileDamagedError.
    """
    with _faults(folder):
        return _values(folder, rows)


def _values(folder: Path, rows: int) -> dict[str, Any] | None:
    model = folder / "tokenizer.model"
    spoken = read_object(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        values = _from_json(read_object(folder / "tokenizer.json"), {}, rows)
        values[_WHOLE] = (folder / "tokenizer.json").read_text(encoding="utf-8")
    elif not model.is_file():
        return None
    elif looks_like_ranks(read_file(model)):
        found = load_tiktoken(model)
        values = _from_json(json.loads(found.inner.to_str()), found.control, rows)
        ends = dict(zip(("eos", "eot", "eom"), found.eos, strict=False))
        ids = {"bos": found.bos, **ends}
        values |= {f"{_KEY}{name}_token_id": number for name, number in ids.items() if number is not None}
        values[f"{_KEY}add_bos_token"] = bool(found.prefix)
    else:
        values = _from_pieces(read_model(read_file(model)), rows)
    values |= _conventions(folder, spoken, list(values[f"{_KEY}tokens"]))
    return values


def _from_json(said: Mapping[str, Any], control: Mapping[str, int], rows: int) -> dict[str, Any]:
    """From a tokenizer.json with byte-pair merges; `control`: further names with their ids."""
    model = said.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise _no_kind("it is not byte-pair encoding")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges", [])]
    names: dict[int, str] = {number: name for name, number in model["vocab"].items()}
    types = dict.fromkeys(names, Type.NORMAL)
    for token in said.get("added_tokens") or []:
        names[token["id"]] = token["content"]
        types[token["id"]] = Type.CONTROL if token.get("special") else Type.USER_DEFINED
    names |= {number: name for name, number in control.items()}
    types |= dict.fromkeys(control.values(), Type.CONTROL)
    if model.get("byte_fallback"):
        return _scored(said, model, merges, names, types, rows)
    return _pieces("gpt2", names, types, rows) | {f"{_KEY}pre": _pattern(said), f"{_KEY}merges": merges}


def _pattern(said: Mapping[str, Any]) -> str:
    """llama.cpp's name of the pattern that splits text into words."""
    steps = said.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    whole = any(step.get("type") == "ByteLevel" and step.get("use_regex", True) for step in steps)
    pattern = GPT2 if whole else ""
    for step in steps:
        if step.get("type") == "Split" and isinstance(step.get("pattern"), dict):
            pattern = step["pattern"].get("Regex", "")
    if pattern not in _PRE:
        raise _no_kind(f"llama.cpp has no name that we know for its pattern {pattern[:120]!r}")
    return _PRE[pattern]


def _scored(
    said: Mapping[str, Any],
    model: Mapping[str, Any],
    merges: list[str],
    names: dict[int, str],
    types: dict[int, Type],
    rows: int,
) -> dict[str, Any]:
    """SentencePiece's kind from its form in JSON: a piece's score is the order in which it is merged."""
    rank = {merge.replace(" ", ""): -float(place) for place, merge in reversed(list(enumerate(merges)))}
    for number, name in names.items():
        if types[number] == Type.NORMAL and len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            types[number] = Type.BYTE
        if name == model.get("unk_token"):
            types[number] = Type.UNKNOWN
    values = _pieces("llama", names, types, rows)
    # What no merge makes (characters) is never asked for its score.
    scores = [rank.get(name, 0.0) for name in values[f"{_KEY}tokens"]]
    rules = json.dumps([said.get("normalizer"), said.get("pre_tokenizer")])
    prefix = any(word in rules for word in ('"Prepend"', '"prepend_scheme": "first"', '"always"'))
    return values | {f"{_KEY}scores": np.array(scores, np.float32), f"{_KEY}add_space_prefix": prefix}


def _from_pieces(model: PieceModel, rows: int) -> dict[str, Any]:
    if model.unigram or not model.escape_spaces:
        raise _no_kind("it is SentencePiece's unigram model, or keeps plain spaces")
    names = {number: piece.text for number, piece in enumerate(model.pieces)}
    types = {number: Type(piece.type) for number, piece in enumerate(model.pieces)}
    values = _pieces("llama", names, types, rows)
    scores = [piece.score for piece in model.pieces]
    scores += [0.0] * (len(values[f"{_KEY}tokens"]) - len(scores))
    values |= {
        f"{_KEY}scores": np.array(scores, np.float32),
        f"{_KEY}add_space_prefix": model.dummy_prefix,
        f"{_KEY}remove_extra_whitespaces": model.remove_extra_spaces,
        f"{_KEY}add_bos_token": True,
    }
    ids = {"bos": model.bos, "eos": model.eos}
    return values | {f"{_KEY}{name}_token_id": number for name, number in ids.items() if number is not None}


def _pieces(kind: str, names: Mapping[int, str], types: Mapping[int, Type], rows: int) -> dict[str, Any]:
    """All pieces in order; ids without one, up to the model's rows, are named and marked as unused."""
    if max(names, default=0) >= rows:
        raise _no_kind(f"it has the id {max(names)}, and the model only {rows} rows")
    return {
        f"{_KEY}model": kind,
        f"{_KEY}tokens": [names.get(number, f"[PAD{number}]") for number in range(rows)],
        f"{_KEY}token_type": np.array([types.get(n, Type.UNUSED) for n in range(rows)], np.int32),
    }


def _conventions(folder: Path, spoken: Mapping[str, Any], tokens: list[str]) -> dict[str, Any]:
    """Which tokens begin, end and pad, and the chat template."""
    values: dict[str, Any] = {}
    beside = read_object(folder / "config.json") | read_object(folder / "generation_config.json")
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        number = beside.get(f"{name}_token_id")
        ends = [number] if isinstance(number, int) else list(number or [])
        if (text := token_name(spoken.get(f"{name}_token"))) in tokens:
            ends.insert(0, tokens.index(str(text)))
        ends = [end for end in dict.fromkeys(ends) if type(end) is int and 0 <= end < len(tokens)]
        for place, end in zip((key, "eot", "eom") if name == "eos" else (key,), ends, strict=False):
            values[f"{_KEY}{place}_token_id"] = end
    if isinstance(spoken.get("add_bos_token"), bool):
        values[f"{_KEY}add_bos_token"] = spoken["add_bos_token"]
    elif (folder / "tokenizer.json").is_file():  # its own template says what a text begins with
        with contextlib.suppress(ModelFileDamagedError):  # one that only llama.cpp's kind of reader can use
            values[f"{_KEY}add_bos_token"] = bool(Tokenizer.load(folder).prefix)
    return values | _templates(folder, spoken)


def _templates(folder: Path, spoken: Mapping[str, Any]) -> dict[str, str]:
    """The chat template, and those of other names (one for tools, say)."""
    found: dict[Any, Any] = {}
    said = spoken.get("chat_template")
    if isinstance(said, list):
        found |= {entry.get("name"): entry.get("template") for entry in said if isinstance(entry, dict)}
    elif said is not None:
        found["default"] = said
    for file in (folder / "chat_template.jinja", *sorted((folder / TEMPLATES).glob("*.jinja"))):
        own = own_file(folder, file.relative_to(folder).as_posix())  # a link to elsewhere isn't passed on
        if own.is_file():
            alone = file.parent == folder
            found["default" if alone else file.stem] = own.read_text(encoding="utf-8")
    named = {str(n): t for n, t in found.items() if isinstance(t, str) and _NAME.fullmatch(str(n))}
    return {_TEMPLATE if name == "default" else f"{_TEMPLATE}.{name}": text for name, text in named.items()}


@contextlib.contextmanager
def _faults(source: Path | str) -> Iterator[None]:
    """What strangers' files are missing or have of another type becomes a typed error."""
    try:
        yield
    except _DAMAGE as error:
        why = f"{type(error).__name__}: {error}"
        raise ModelFileDamagedError(f"the tokenizer of {source} is damaged", why=why[:300]) from error


def _no_kind(why: str) -> RequestError:
    return RequestError(
        "this tokenizer can't be written to GGUF", why=why, fix="export as a Hugging Face folder: --format hf"
    )


# ---- in
def files_from_gguf(values: Mapping[str, Any]) -> dict[str, bytes]:
    """The tokenizer files (name -> content) of a Hugging Face folder from a GGUF file's metadata; none where
    it has no vocabulary.

    Errors: ModelFileDamagedError for a kind or a pattern that isn't known.
    """
    with _faults("the GGUF file"):
        return _files(values)


def _files(values: Mapping[str, Any]) -> dict[str, bytes]:
    kind = values.get(f"{_KEY}model")
    if kind in (None, "none", "no_vocab"):
        return {}
    tokens = list(values.get(f"{_KEY}tokens", ()))
    types = [int(number) for number in values.get(f"{_KEY}token_type", [Type.NORMAL] * len(tokens))]
    if len(types) != len(tokens) or not all(isinstance(token, str) for token in tokens):
        raise _unknown("it doesn't have one type for each piece")
    if isinstance(whole := values.get(_WHOLE), str):
        files = {"tokenizer.json": whole.encode()}
    elif kind == "gpt2":
        files = {"tokenizer.json": _json(values, tokens, types)}
    elif kind == "llama":
        files = {"tokenizer.model": _protobuf(values, tokens, types)}
    else:
        raise _unknown(f"its vocabulary is of the kind {str(kind)[:80]!r}; known are 'llama' and 'gpt2'")
    spoken: dict[str, Any] = {
        "tokenizer_class": "LlamaTokenizer" if kind == "llama" else "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        number = values.get(f"{_KEY}{key}_token_id")
        if type(number) is int and 0 <= number < len(tokens):
            spoken[f"{name}_token"] = tokens[number]
    # A whole tokenizer.json says by itself what a text begins with, unless the file says otherwise.
    adds = values.get(f"{_KEY}add_bos_token")
    if adds is not None or "tokenizer.json" not in files or _WHOLE not in values:
        usual = kind == "llama" or values.get(f"{_KEY}pre") in BEGIN
        spoken["add_bos_token"] = usual if adds is None else bool(adds)
    for key, template in values.items():
        name = "default" if key == _TEMPLATE else key.removeprefix(f"{_TEMPLATE}.")
        if not (isinstance(template, str) and key.startswith(_TEMPLATE) and _NAME.fullmatch(name)):
            continue
        if name == "default":
            files["chat_template.jinja"] = template.encode()
            spoken["chat_template"] = template
        else:
            files[f"{TEMPLATES}/{name}.jinja"] = template.encode()
    return files | {
        "tokenizer_config.json": (json.dumps(spoken, indent=2, ensure_ascii=False) + "\n").encode()
    }


def _json(values: Mapping[str, Any], tokens: list[str], types: list[int]) -> bytes:
    """tokenizer.json of byte-level BPE."""
    pre = str(values.get(f"{_KEY}pre", "default"))
    known = {"qwen35": (QWEN35, False, True)} | PATTERNS
    if pre not in known:
        raise _unknown(f"its pattern for words is {pre[:80]!r}; known are {', '.join(sorted(known))}")
    if len(set(tokens)) < len(tokens):
        raise _unknown("a piece is there twice")
    pattern, whole_words, compose = known[pre]
    added = [
        {
            "id": number, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": kind == Type.CONTROL,
        }
        for number, (name, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (Type.CONTROL, Type.USER_DEFINED)
    ]  # fmt: skip
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    said = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if compose else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel"} | level]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel"} | level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": whole_words,
            # All of them: a token that isn't in it would get another id than here.
            "vocab": {name: n for n, name in enumerate(tokens)},
            "merges": list(values.get(f"{_KEY}merges", ())),
        },
    }  # fmt: skip
    return (json.dumps(said, indent=1, ensure_ascii=False) + "\n").encode()


def _protobuf(values: Mapping[str, Any], tokens: list[str], types: list[int]) -> bytes:
    """tokenizer.model: SentencePiece's ModelProto (pieces 1, trainer 2, normaliser 3)."""
    scores = values.get(f"{_KEY}scores", ())
    if len(scores) != len(tokens):
        raise _unknown("it doesn't have one score for each piece")
    out = bytearray()
    for token, score, kind in zip(tokens, scores, types, strict=True):
        text = token.encode()
        out += _field(1, _field(1, text) + b"\x15" + struct.pack("<f", score) + _field(3, kind))
    ids = {40: "unknown", 41: "bos", 42: "eos", 43: "padding"}
    found = {field: values.get(f"{_KEY}{name}_token_id", -1) for field, name in ids.items()}
    found[40] = (
        found[40] if found[40] != -1 else next((n for n, t in enumerate(types) if t == Type.UNKNOWN), 0)
    )
    # Trainer: the model is BPE (3: 2), with bytes for what no piece covers (35).
    trainer = _field(3, 2) + _field(35, int(Type.BYTE in types))
    out += _field(2, trainer + b"".join(_field(field, number) for field, number in found.items()))
    rules = {
        3: values.get(f"{_KEY}add_space_prefix", True),
        4: values.get(f"{_KEY}remove_extra_whitespaces", False),
        5: True,
    }
    return bytes(out + _field(3, b"".join(_field(field, int(bool(flag))) for field, flag in rules.items())))


def _field(number: int, value: int | bytes) -> bytes:
    """One field of a protocol buffer: a varint, or bytes with their length."""
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    value &= 2**64 - 1  # negative numbers are ten bytes long
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _unknown(why: str) -> ModelFileDamagedError:
    return ModelFileDamagedError(
        "the GGUF file's vocabulary can't be read",
        why=why,
        fix="put the original model's tokenizer.json beside the imported weights",
    )
