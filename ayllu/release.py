"""The release stage: a model folder that others can load, check and trust.

It is an ordinary Hugging Face model folder (safetensors, tokenizer.json, a chat template; no pickle,
no Python, no `auto_map`), so that transformers and vLLM read it without our code (llama.cpp reads what
`ayllu export` writes). Besides the weights it carries what they were made from: the recipe, the data
manifest and its attribution, the report, and `manifest.json` with the SHA-256 of every file, which is
written last: a folder that has it is whole. The aims are those of the Model Openness Framework (White et
al. 2024).
"""

from __future__ import annotations

import os
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ayllu.errors import BadFileError, ModelFileDamagedError, ModelFileMissingError
from ayllu.files import (
    make_folder,
    read_json,
    safe_join,
    sha256_file,
    sha256_json,
    sync_folder,
    typed_os_errors,
    write_json,
    write_text,
)
from ayllu.report.card import is_public, model_card
from ayllu.report.summary import STAGES, read_stages, summarise
from ayllu.stage import StageContext, bounded, free, one_of

MANIFEST = "manifest.json"
VERIFIER, STUDENT = "verifier", "student"  # folders within the model's: its verifier, its distilled student
CHAT_TEMPLATE = Path(__file__).parent / "reason" / "chat_template.jinja"
CODE_VERSION = 3  # 3: the card and the report say in which type weights are stored
LICENCE = Path(__file__).parent / "report" / "LICENSE-Apache-2.0.txt"
_CODE = {".py", ".so", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy"}


@dataclass(frozen=True)
class ReleaseSettings:
    """What the recipe can say about the release."""

    title: str = free("", "the model's name on its card; empty takes the name of the run")
    dtype: str = one_of("float32", ("float32", "bfloat16"), "number format that the weights are stored in")
    max_shard_size: int = bounded(
        5000, 1, 100_000, "MB (10^6 bytes) of weights in one file; more are divided among several"
    )


def release(context: StageContext, settings: ReleaseSettings) -> dict[str, Any]:
    """Fill `context.folder` with the model after RL, check it, and return its hashes for the report.

    Reads rl/model (config.json, *.safetensors), tokenizer/, the text stage's manifest and attribution,
    and every stage's result; a run's verifier goes into the model's folder `verifier`, a distilled model into
    `student`, both as their stages wrote them. Begins afresh when it is called again. Returns
    `weights_sha256`, `tokenizer_sha256`, `data_manifest_sha256`, `dtype`, `files`, `bytes`.
    Errors: ModelFileMissingError, ModelFileDamagedError, DiskFullError, FolderReadOnlyError.
    """
    from ayllu.reason.thinking import taught
    from ayllu.reason.verify import HEAD

    folder, run = context.folder, context.metrics.parent
    source = context.inputs["rl"] / "model"
    context.progress.start(4, "steps")
    _empty(folder)
    _copy(_need(context.inputs["tokenizer"] / "tokenizer.json"), folder / "tokenizer.json")
    _write_weights(source, folder, settings)
    if "verifier" in context.inputs:
        _need(context.inputs["verifier"] / "model" / HEAD)
        _copy_model(context.inputs["verifier"] / "model", folder / VERIFIER)
    if "distill" in context.inputs:
        _copy_model(context.inputs["distill"] / "model", folder / STUDENT)
        student = folder / STUDENT
        _write_configs(student, read_json(student / "config.json"), budgets=taught(student))
    context.progress.update(1, "weights written")

    recipe = _recipe(run)
    # An optional stage that the recipe no longer has leaves its folder behind.
    stages = {name: made for name, made in read_stages(run).items() if name in STAGES or name in recipe}
    report = _report(recipe, stages, weights_sha256(folder)) | {"weights_dtype": settings.dtype}
    title = settings.title or recipe.get("name") or run.name
    data = read_json(_need(context.inputs["text"] / MANIFEST))
    _write_configs(folder, read_json(folder / "config.json"), budgets=taught(source))
    write_json(folder / "report.json", report)
    write_text(folder / "README.md", model_card(str(title), report, data))
    _copy(_need(context.inputs["text"] / "ATTRIBUTION.md"), folder / "ATTRIBUTION.md")
    if is_public(report):
        _copy(LICENCE, folder / "LICENSE")
    context.progress.update(2, "described")

    inventory = _inventory(folder)
    files = {name: {"bytes": size, "sha256": digest} for name, size, digest in inventory}
    manifest = {
        "format": 1,
        "name": title,
        "weights_sha256": weights_sha256(folder),
        "files": files,
        "data_manifest_sha256": sha256_file(context.inputs["text"] / MANIFEST),
        "data": data,
        "practice": _practice_files(stages),
        "recipe": recipe,
    }
    write_json(folder / MANIFEST, manifest)
    context.progress.update(3, "manifest written")
    verify_model_folder(folder)
    _try_out(folder)
    context.progress.update(4)
    total = sum(size for _, size, _ in inventory)
    context.progress.finish(f"{folder}: {len(files) + 1} files, {total / 1e6:.1f} MB, checked")
    return {
        "weights_sha256": manifest["weights_sha256"],
        "tokenizer_sha256": files["tokenizer.json"]["sha256"],
        "data_manifest_sha256": manifest["data_manifest_sha256"],
        "dtype": settings.dtype,
        "files": len(files) + 1,
        "bytes": total,
    }


def _practice_files(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Name -> SHA-256 of the rows that practice was made from, where it was."""
    inputs = stages.get("sft", {}).get("inputs") or {}
    return {name: entry["sha256"] for name, entry in inputs.items()}


def verify_model_folder(folder: Path) -> None:
    """Compare every file of a model folder with its manifest.json.

    Errors, each naming the file: ModelFileMissingError for one that isn't there (the manifest too),
    ModelFileDamagedError for one of another size or hash, a manifest that can't be read, or weights
    and code that the manifest doesn't list. Other unlisted files (a note of the owner's) are let be.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ModelFileMissingError(
            f"{path} is missing", why="it is written last", fix="release or copy the model again, whole"
        )
    files = _listed(path)
    for name, entry in files.items():
        file = safe_join(folder, name)
        if not file.is_file():
            raise ModelFileMissingError(
                f"{folder / name} is missing", fix="copy the whole model folder again"
            )
        if file.stat().st_size != entry["bytes"]:
            why = f"{file.stat().st_size:,} bytes instead of {entry['bytes']:,}"
            raise ModelFileDamagedError(f"{folder / name} is not whole", why=why, fix="copy it again")
        if sha256_file(file) != entry["sha256"]:
            raise ModelFileDamagedError(
                f"{folder / name} has been altered",
                why="its SHA-256 differs from the manifest's",
                fix="copy it again from a source that you trust",
            )
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = file.relative_to(folder).as_posix()
        loads = file.suffix.lower() in _CODE or ".safetensors" in file.name
        if loads and name not in files:
            raise ModelFileDamagedError(
                f"{file} is not in the manifest", why="weights or code were added", fix="remove it"
            )


def weights_sha256(folder: Path) -> str:
    """The hash of a model folder's weights: of the file, or over the shards' hashes by name."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelFileMissingError(f"{folder / 'model.safetensors'} is missing")
    hashes = {file.name: sha256_file(file) for file in files}
    return hashes["model.safetensors"] if set(hashes) == {"model.safetensors"} else sha256_json(hashes)


def _write_weights(source: Path, folder: Path, settings: ReleaseSettings) -> None:
    """config.json and the weights of `source`, in the settings' type and files. Float32 in one file is
    `source`'s own file to the byte."""
    from ayllu.model.weights import load_model, save_model
    from ayllu.text.tokenizer import Tokenizer

    control = Tokenizer.load(folder).control
    save_model(
        load_model(source),
        folder,
        bos=control["<|bos|>"],
        eos=control["<|end|>"],
        pad=control["<|pad|>"],
        dtype=settings.dtype,
        shard_bytes=settings.max_shard_size * 10**6,
    )


def _write_configs(folder: Path, config: dict[str, Any], *, budgets: bool) -> None:
    """config.json, generation_config.json, tokenizer_config.json and the chat template, in agreement.

    `budgets`: the model was taught budgets of thinking."""
    from ayllu.reason.thinking import mark_taught
    from ayllu.text.tokenizer import CONTROL, Tokenizer

    tokenizer = Tokenizer.load(folder)
    if config.get("vocab_size", 0) < tokenizer.vocab_size:
        raise ModelFileDamagedError(
            f"{folder / 'config.json'}: the model knows {config.get('vocab_size', 0)} tokens, "
            f"the tokenizer has {tokenizer.vocab_size}",
            fix="make the run's pretrain stage and those after it again",
        )
    ids = {
        "bos_token_id": tokenizer.control["<|bos|>"],
        "eos_token_id": tokenizer.control["<|end|>"],
        "pad_token_id": tokenizer.control["<|pad|>"],
    }
    write_json(folder / "config.json", config | ids)
    # Greedy, because the answers are meant to be exact; transformers says so by do_sample.
    # A tool call stops the model too, or it would make up the result itself.
    stops = [tokenizer.control["<|end|>"], tokenizer.control["<|/tool|>"]]
    write_json(folder / "generation_config.json", ids | {"eos_token_id": stops, "do_sample": False})
    if budgets:
        mark_taught(folder)
    template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    write_text(folder / "chat_template.jinja", template)
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "additional_special_tokens": [
            name for name in CONTROL if name not in ("<|bos|>", "<|end|>", "<|pad|>")
        ],
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        # Off, although control tokens in text must never count: with it on, transformers and vLLM would
        # split the template's own control tokens too. The template breaks up those in messages instead.
        "split_special_tokens": False,
        "model_max_length": config.get("max_position_embeddings"),
        "chat_template": template,
    }
    write_json(folder / "tokenizer_config.json", tokenizer_config)


def _try_out(folder: Path) -> None:
    """Load the folder as a user would and run it once: a model that can't count to finite is no release."""
    import torch

    from ayllu.model.weights import load_model
    from ayllu.text.tokenizer import Tokenizer

    tokenizer, model = Tokenizer.load(folder), load_model(folder)
    tokens_BT = torch.tensor([[tokenizer.control["<|bos|>"], *tokenizer.encode("What is 2 + 2?")]])
    with torch.no_grad():
        logits_BTV = model(tokens_BT)
    if not torch.isfinite(logits_BTV).all():
        raise ModelFileDamagedError(
            f"{folder} gives values that are not finite", fix="make the rl stage again"
        )


def _report(recipe: dict[str, Any], stages: dict[str, dict[str, Any]], weights: str) -> dict[str, Any]:
    """The report of the stages that made the model; the release itself is this folder."""
    missing = [name for name in STAGES if name not in stages and name != "release"]
    made = {name: stage for name, stage in stages.items() if name != "release"}
    return summarise(recipe, made) | {"finished": not missing, "missing": missing, "weights_sha256": weights}


def _listed(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """The manifest's table of files, checked for its form."""
    try:
        files = read_json(path)["files"]
        rows = {
            str(name): {"bytes": int(e["bytes"]), "sha256": str(e["sha256"])} for name, e in files.items()
        }
    except (BadFileError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ModelFileDamagedError(
            f"{path} is not a manifest", why=f"{type(error).__name__}: {error}"
        ) from error
    if not rows:
        raise ModelFileDamagedError(f"{path} lists no files")
    return rows


def _inventory(folder: Path) -> list[tuple[str, int, str]]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != MANIFEST)
    return [(p.relative_to(folder).as_posix(), p.stat().st_size, sha256_file(p)) for p in files]


def _empty(folder: Path) -> None:
    """Remove what a killed attempt left, the manifest first: without it the folder counts as unfinished."""
    with typed_os_errors(folder):
        (folder / MANIFEST).unlink(missing_ok=True)
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _copy(source: Path, target: Path) -> None:
    """Copy a file so that `target` is whole or absent."""
    part = target.with_name(f".{target.name}.part")
    with typed_os_errors(target):
        with open(source, "rb") as old, open(part, "wb") as new:
            shutil.copyfileobj(old, new, 1 << 20)
            new.flush()
            os.fsync(new.fileno())
        os.replace(part, target)
        sync_folder(target.parent)


def _copy_model(source: Path, target: Path) -> None:
    """Weights, configs and tokenizer of a further model."""
    _need(source / "config.json")
    make_folder(target)
    for path in sorted(p for p in source.iterdir() if p.suffix in (".json", ".safetensors")):
        _copy(path, target / path.name)


def _need(path: Path) -> Path:
    if not path.is_file():
        raise ModelFileMissingError(f"{path} is missing", fix="run the stage that makes it again")
    return path


def _recipe(run: Path) -> dict[str, Any]:
    """The run's complete recipe; empty where the stage is called without a run round it."""
    try:
        return tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
