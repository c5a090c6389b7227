"""Which folder MODEL means on the command line: a model folder, a run folder, or a name under models/."""

from __future__ import annotations

from pathlib import Path

from ayllu.errors import InputNotFoundError, ModelFileMissingError
from ayllu.recipe import nearest


def resolve_model(name: str, *, models: Path = Path("models"), runs: Path = Path("runs")) -> Path:
    """The model folder that `name` means.

    Raises InputNotFoundError when there is nothing of that name or the run hasn't made its model yet,
    ModelFileMissingError when the folder has no config.json.
    """
    path = Path(name)
    if not path.exists() and path.name == name and (models / name).is_dir():
        path = models / name
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return path
        raise ModelFileMissingError(
            f"{name} is a file; a model is a folder or a GGUF file",
            fix="name the folder that holds config.json",
        )
    if not path.is_dir():
        known = [
            str(p)
            for folder in (runs, models)
            if folder.is_dir()
            for p in sorted(folder.iterdir())
            if p.is_dir()
        ]
        by_last_word = {Path(p).name: p for p in known}
        near = nearest(path.name, by_last_word)
        if near:
            fix = f"did you mean {by_last_word[near]}?"
        elif known:
            fix = f"here are: {', '.join(known[:8])}"
        else:
            fix = "make one first: ayllu make recipes/demo.toml"
        raise InputNotFoundError(f"there is no model {name!r}", fix=fix)
    if any((path / config).is_file() for config in ("config.json", "params.json")):
        return path
    if (path / "model" / "config.json").is_file():
        return path / "model"
    if (path / "recipe.toml").is_file():
        raise InputNotFoundError(
            f"the run {name} has not made its model yet", fix="finish it: ayllu make with the same recipe"
        )
    raise ModelFileMissingError(
        f"{path} has no config.json, so it is not a model folder",
        fix="name a model folder, a run folder or a name under models/",
    )
