"""S1: weights that are pickles are never opened, and nothing in the package could open one.

A pickle is a program (CVE-2025-32434 and CVE-2026-24747 ran it even through torch's restricted loader).
The canary is what such a program would leave behind.
"""

from __future__ import annotations

import ast
import pickle
import zipfile
from pathlib import Path

import pytest

import ayllu
from ayllu.errors import BadFileError
from ayllu.model.weights import load_config, load_model

PACKAGE = Path(ayllu.__file__).parent
SUFFIXES = [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".joblib", ".npy", ".BIN"]


class Canary:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


def poison(path: Path, canary: Path, *, zipped: bool) -> None:
    """A pickle as such, or within the ZIP that torch makes."""
    program = pickle.dumps({"model.norm.weight": Canary(canary)})
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", program)
            archive.writestr("archive/version", "3\n")
    else:
        path.write_bytes(program)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_canary_works_and_stays_untouched(folder, tmp_path, suffix, zipped):
    canary, poisoned = tmp_path / "canary", folder / f"pytorch_model{suffix}"
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists(), "the canary sings when it is unpickled"
    canary.unlink()
    # Beside whole weights a pickle is not looked at.
    poison(poisoned, canary, zipped=zipped)
    load_model(folder)
    # Alone it is refused, with the way out.
    (folder / "model.safetensors").unlink()
    for path in (folder, poisoned):
        with pytest.raises(BadFileError, match="can run any code") as caught:
            load_model(path)
        assert caught.value.exit_code == 5 and "safetensors" in caught.value.fix
    assert not canary.exists()


@pytest.mark.parametrize(
    "name", ["model.safetensors", "model.safetensors.index.json", "config.json", "a.gguf"]
)
def test_a_pickle_under_an_innocent_name(folder, tmp_path, name):
    if name.endswith("index.json"):
        (folder / "model.safetensors").unlink()
    poison(folder / name, tmp_path / "canary", zipped=False)
    with pytest.raises(BadFileError):
        load_model(folder / name if name.endswith("gguf") else folder)
    assert not (tmp_path / "canary").exists()


# ---- nothing in the package could
FORBIDDEN_MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "joblib", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {
    ("torch", "load"),
    ("yaml", "load"),
    ("yaml", "unsafe_load"),
    ("pandas", "read_pickle"),
}


def faults_of(source: str) -> list[str]:
    """Everything in a program that could run what a file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            full = {(node.module, alias.name) for alias in node.names}
            if node.module.split(".")[0] in FORBIDDEN_MODULES or full & FORBIDDEN_ATTRIBUTES:
                found.append(f"from {node.module}")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) in FORBIDDEN_ATTRIBUTES:
                found.append(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
                found.append(node.func.id)
            for keyword in node.keywords:
                harmless = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in ("allow_pickle", "trust_remote_code") and not harmless:
                    found.append(f"{keyword.arg}=")
    return found


# Model-written programs run in this one file, called only in the forked child that has raised the sandbox's
# walls round itself (tests/escapes).
RUNS_MODEL_CODE = "tools/walls/inmate.py"


def test_no_code_of_the_package_can_run_what_a_file_says():
    faults = {
        str(path.relative_to(PACKAGE)): found
        for path in sorted(PACKAGE.rglob("*.py"))
        if (found := faults_of(path.read_text(encoding="utf-8")))
    }
    assert set(faults.pop(RUNS_MODEL_CODE)) == {"compile", "exec", "eval"}
    assert not faults


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import torch, _pickle as p",
        "from dill import loads",
        "import joblib.numpy_pickle",
        "torch.load(f)",
        "read = torch.load",
        "from torch import load",
        "yaml.load(f, Loader=L)",
        "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=wish)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "compile(text, '', 'exec')",
    ],
)
def test_the_search_finds_what_it_is_for(source):
    assert faults_of(source)


def test_the_search_lets_the_rest_pass():
    assert not faults_of(
        "import re\nre.compile('x')\nmodel.eval()\nnp.load(f, allow_pickle=False)\ntorch.save"
    )


def test_a_config_alone_is_enough_for_its_sizes(folder):
    for path in folder.glob("*.safetensors"):
        path.unlink()
    assert load_config(folder).width == 32
