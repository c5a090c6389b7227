"""Models that come and leave: any form that is read -> a Hugging Face folder, or one GGUF file.

What belongs to a model besides its weights goes along: the tokenizer's files, the ids that begin and end a
text, the chat templates, the card, the licence, the attribution. A GGUF file holds of these the licence's
name and link and the attribution's text.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ayllu.errors import UsageError
from ayllu.files import (
    make_folder,
    new_folder,
    own_file,
    read_json,
    refuse_existing,
    typed_os_errors,
    write_bytes,
    write_json,
    write_text,
)
from ayllu.gguf import read_header, sampling_from_gguf, sampling_to_gguf
from ayllu.models import resolve_model
from ayllu.text.vocabularies.gguf import TEMPLATES

FORMATS = ("auto", "gguf", "hf")
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
BESIDE = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "generation_config.json", "chat_template.jinja",
    f"{TEMPLATES}/*.jinja", "README.md", "LICEN[CS]E*", "NOTICE*", "Notice*", "USE_POLICY.md",
    "ATTRIBUTION.md",
)  # fmt: skip
_ATTRIBUTION = "ayllu.attribution"  # a GGUF file's key for the text of ATTRIBUTION.md
_LICENCE = {
    "license": "general.license",
    "license_name": "general.license.name",
    "license_link": "general.license.link",
}
# What a GGUF file says of itself, and another one doesn't take over.
_OF_THE_FILE = ("architecture", "file_type", "quantization_version", "alignment")


def import_model(name: str, out: Path, *, dtype: str = "auto") -> dict[str, Any]:
    """Write the model `name` (a GGUF file, a folder of Meta's or of Hugging Face's form, a run, a name under
    models/) as the Hugging Face folder `out`, which must not exist. Returns what was written.

    `dtype`: the weights' type there; auto keeps the stored one (float32 for packed weights).
    Errors: UsageError, those of `load_model` and `save_model`, ModelFileDamagedError for a vocabulary.
    """
    from ayllu.model.weights import load_model, open_weights, save_model

    source = find_plain(name, "converted")
    refuse_existing(out)
    values, tensors = open_weights(source)
    tensors.close()
    model = load_model(source, dtype=dtype)
    with new_folder(out, replace=False) as folder, typed_os_errors(out):
        save_model(model, folder, bos=0, eos=0, pad=0, dtype=None if dtype == "auto" else dtype)
        config = {key: value for key, value in read_json(folder / "config.json").items() if key not in _IDS}
        ids = {key: values[key] for key in _IDS if values.get(key) is not None}
        if source.is_file():
            _write_vocabulary(source, folder, ids)
        else:
            copy_beside(source, folder)
            if not ids and not (folder / "generation_config.json").exists():
                ids = _ids_of_tokenizer(source, folder)
        write_json(folder / "config.json", config | ids)
    return _summary(model, out, "hf", config["dtype"]) | {"tokenizer": _has_tokenizer(out)}


def copy_beside(source: Path, folder: Path) -> None:
    """The files that belong to a model, but its config and weights. BadFileError for one that is a link to
    somewhere else: a stranger's folder mustn't name what is to be passed on."""
    for pattern in BESIDE:
        for path in sorted(source.glob(pattern)):
            name = path.relative_to(source).as_posix()
            if (file := own_file(source, name)).is_file():
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(file, folder / name)


def _ids_of_tokenizer(source: Path, folder: Path) -> dict[str, Any]:
    """The ids of a model whose own files don't say them (Meta's form), for the config, and in full for
    generation_config.json: readers of a folder without them take Llama 2's."""
    from ayllu.text.tokenizer import Tokenizer

    if not _has_tokenizer(source):
        return {}
    found = Tokenizer.load(source)
    ids: dict[str, Any] = {} if found.bos is None else {"bos_token_id": found.bos}
    ends = list(found.eos)
    if ends:
        write_json(folder / "generation_config.json", ids | {"eos_token_id": ends})
    return ids | ({"eos_token_id": ends[0]} if ends else {})


def export_model(name: str, out: Path, *, form: str = "auto", kind: str | None = None) -> dict[str, Any]:
    """Write the model `name` as the GGUF file `out`, or as a Hugging Face folder. `out` must not exist.

    `form`: gguf or hf; auto takes gguf for a name that ends in .gguf, else hf. `kind`: of the matrices of
    a GGUF file: F16 (unless told), BF16, Q8_0 or Q4_0. Returns what was written.
    Errors: UsageError, RequestError for what llama.cpp can't compute or read, those of `load_model`.
    """
    if form not in FORMATS:
        raise UsageError(f"--format {form} is not known", fix=f"give one of {', '.join(FORMATS)}")
    if form == "hf" or (form == "auto" and out.suffix.lower() != ".gguf"):
        if kind is not None:
            raise UsageError(
                "--kind is of a GGUF file, and this is to be a Hugging Face folder",
                fix=f"name the file {out}.gguf, or leave --kind out",
            )
        return import_model(name, out)
    if out.is_dir():
        raise UsageError(f"{out} is a folder, and a GGUF model is one file", fix=f"try {out / 'model.gguf'}")
    if out.exists():
        raise UsageError(f"{out} exists already", fix="name a file that doesn't")
    source = find_plain(name, "converted")
    from ayllu.model.formats.gguf import EXPORTED, write_gguf
    from ayllu.model.weights import load_model
    from ayllu.text.gguf_vocabulary import gguf_values
    from ayllu.text.vocabularies.conventions import read_object

    if (kind := (kind or "F16").upper()) not in EXPORTED:
        raise UsageError(f"--kind {kind} is not known", fix=f"give one of {', '.join(EXPORTED)}")
    model = load_model(source, dtype="auto")
    if source.is_file():
        stored = read_header(source).metadata
        vocabulary: Mapping[str, Any] | None = {k: v for k, v in stored.items() if k.startswith("tokenizer.")}
        about = _passed_on(stored) | sampling_to_gguf(sampling_from_gguf(stored))
    else:
        vocabulary = gguf_values(source, model.config.vocab_size)
        about = _described(source) | sampling_to_gguf(read_object(source / "generation_config.json"))
    make_folder(out.parent)
    title = source.parent.name if source.name == "model" else source.stem if source.is_file() else source.name
    write_gguf(model, out, kind=kind, vocabulary=vocabulary, metadata={"general.name": title} | about)
    return _summary(model, out, "gguf", kind) | {"tokenizer": bool(vocabulary)}


def _described(source: Path) -> dict[str, Any]:
    """Licence and attribution of a model folder, from its card's head and ATTRIBUTION.md, as metadata.
    BadFileError for a link that leaves the folder."""
    found: dict[str, Any] = {}
    card, attribution = (own_file(source, name) for name in ("README.md", "ATTRIBUTION.md"))
    if card.is_file():
        lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
        head = itertools.takewhile(
            lambda line: line.strip() != "---", lines[1:] if lines[:1] == ["---"] else []
        )
        for line in head:
            name, _, value = line.partition(":")
            if name in _LICENCE and (plain := value.strip().strip("\"'")):
                found[_LICENCE[name]] = plain
    if attribution.is_file():
        found[_ATTRIBUTION] = attribution.read_text(encoding="utf-8", errors="replace")
    return found


def _passed_on(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What a GGUF file says of the model and another one takes over."""
    own = {f"general.{name}" for name in _OF_THE_FILE}
    return {
        key: value
        for key, value in stored.items()
        if isinstance(value, str) and (key == _ATTRIBUTION or (key.startswith("general.") and key not in own))
    }


def _write_card(stored: Mapping[str, Any], folder: Path) -> None:
    """README.md and ATTRIBUTION.md with what the file says of licence, author and sources."""
    said = {name: stored[key] for name, key in _LICENCE.items() if isinstance(stored.get(key), str)}
    title, author = stored.get("general.name"), stored.get("general.author")
    if said:
        lines = ["---", *(f"{name}: {json.dumps(value)}" for name, value in said.items()), "---", ""]
        lines += [f"# {title if isinstance(title, str) else folder.name}"]
        lines += ["", f"By {author}."] if isinstance(author, str) else []
        write_text(folder / "README.md", "\n".join(lines) + "\n")
    if isinstance(text := stored.get(_ATTRIBUTION), str):
        write_text(folder / "ATTRIBUTION.md", text)


def _write_vocabulary(source: Path, folder: Path, ids: Mapping[str, Any]) -> None:
    """The tokenizer's files of a GGUF file, and which tokens end an answer."""
    from ayllu.text.gguf_vocabulary import files_from_gguf

    metadata = read_header(source).metadata
    for file, content in files_from_gguf(metadata).items():
        (folder / file).parent.mkdir(exist_ok=True)
        write_bytes(folder / file, content)
    _write_card(metadata, folder)
    write_json(folder / "generation_config.json", _generation(metadata, ids))


def write_from_gguf(source: Path, folder: Path) -> None:
    """All that a GGUF file has but the weights, as the files of a Hugging Face folder. Errors: those of
    `load_config`."""
    from ayllu.model.families import family
    from ayllu.model.weights import load_config, open_weights

    values, tensors = open_weights(source)
    tensors.close()
    config = load_config(source)
    ids = {key: values[key] for key in _IDS if values.get(key) is not None}
    write_json(folder / "config.json", family(config.family).config_to_hf(config) | ids)
    _write_vocabulary(source, folder, ids)


def find(name: str) -> Path:
    """The file or folder that `name` means. Errors: InputNotFoundError, ModelFileMissingError."""
    path = Path(name)
    if (path.is_file() and path.suffix.lower() == ".gguf") or (path / "params.json").is_file():
        return path
    return resolve_model(name)


def find_plain(name: str, done: str) -> Path:
    """`find`, for a model that is to be `done` (converted, say) and whose weights have to be whole for that.
    Errors: those of `find`, UsageError for packed weights."""
    from ayllu.engine.quantize import packed_only

    source = find(name)
    if kinds := packed_only(source):
        raise UsageError(
            f"{source} holds packed weights only ({', '.join(kinds)}), which can't be {done}",
            why="packing rounds: the weights that they were made from are not in them",
            fix="name the model that was packed",
        )
    return source


def _generation(stored: Mapping[str, Any], ids: Mapping[str, Any]) -> dict[str, Any]:
    """generation_config.json: every token that ends an answer, and how to sample."""
    ends = [stored.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    known = list(dict.fromkeys(end for end in ends if type(end) is int and end >= 0))
    return dict(ids) | ({"eos_token_id": known} if known else {}) | sampling_from_gguf(stored)


def _summary(model: Any, out: Path, form: str, kind: str) -> dict[str, Any]:
    files = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    return {
        "model": str(out),
        "format": form,
        "kind": kind,
        "family": model.config.family,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "bytes": sum(path.stat().st_size for path in files),
    }


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() or (folder / "tokenizer.model").is_file()


def sentence(said: Mapping[str, Any]) -> str:
    """What was written, in a line."""
    size = f"{said['parameters'] / 1e6:,.1f} million parameters, {said['bytes'] / 1e6:,.1f} MB"
    lacking = "" if said["tokenizer"] else "; without a tokenizer, the source has none"
    return f"{said['model']}: {said['family']}, {said['kind']}, {size}{lacking}"
