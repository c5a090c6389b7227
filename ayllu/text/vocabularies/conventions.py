"""Which token begins a text and which ones end an answer: what the JSON files beside a vocabulary say.

generation_config.json names the ids at which generation stops (often several), config.json and
tokenizer_config.json name one each. All of them count: none occurs inside an answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ayllu.errors import BadFileError
from ayllu.files import read_json
from ayllu.text.vocabularies.vocabulary import Vocabulary, damaged

_MAX_BYTES = 64 << 20


def apply_conventions(vocabulary: Vocabulary, folder: Path) -> None:
    """Set `bos`, `eos` and `prefix` from the folder's files, where they say something.

    Errors: ModelFileDamagedError for values of a wrong kind.
    """
    spoken = read_object(folder / "tokenizer_config.json")
    config, generation = read_object(folder / "config.json"), read_object(folder / "generation_config.json")
    if isinstance(config.get("text_config"), dict):  # models that see keep their language part inside
        config = {**config, **config["text_config"]}
    named = {name: _named(vocabulary, spoken, name, folder) for name in ("bos_token", "eos_token")}
    bos = [
        named["bos_token"],
        *_ids(generation, "bos_token_id", folder),
        *_ids(config, "bos_token_id", folder),
    ]
    if vocabulary.bos is None:
        vocabulary.bos = next((b for b in bos if b is not None), None)
    ends = [
        *_ids(generation, "eos_token_id", folder),
        *_ids(config, "eos_token_id", folder),
        named["eos_token"],
    ]
    vocabulary.eos = tuple(dict.fromkeys(e for e in (*ends, *vocabulary.eos) if e is not None))
    adds = spoken.get("add_bos_token")
    if adds is False:
        vocabulary.prefix = ()
    elif adds is True and vocabulary.bos is not None:
        vocabulary.prefix = (vocabulary.bos,)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty when there is no such file. Errors: ModelFileDamagedError."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise damaged(path, f"it is larger than {_MAX_BYTES >> 20} MiB")
        value = read_json(path)
    # The parser gives up on endless digits with ValueError and on endless nesting with RecursionError.
    except (BadFileError, ValueError, RecursionError, OSError) as error:
        raise damaged(path, getattr(error, "why", "") or str(error)) from error
    if not isinstance(value, dict):
        raise damaged(path, "it is not a JSON object")
    return value


def token_name(value: Any) -> str | None:
    """The name in a tokenizer_config.json entry: text, or an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _named(vocabulary: Vocabulary, spoken: dict[str, Any], key: str, folder: Path) -> int | None:
    name = token_name(spoken.get(key))
    if name is None:
        return None
    found = vocabulary.control.get(name)
    return vocabulary.inner.token_to_id(name) if found is None else found


def _ids(values: dict[str, Any], key: str, folder: Path) -> list[int]:
    found = values.get(key)
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < 2**31 for i in ids):
        raise damaged(folder, f"{key} is not a token id or a list of them")
    return ids
