"""S2: a config can't name code, and Python files in a folder are never imported (CVE-2025-66448,
CVE-2026-4944)."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import pytest
from small_folder import change_config

from ayllu.errors import AylluError, RefusedError
from ayllu.model import weights
from ayllu.model.weights import load_config, load_model


@pytest.mark.parametrize("load", [load_config, load_model])
@pytest.mark.parametrize(
    "value", [{"AutoModelForCausalLM": "modeling_evil.Evil"}, {"AutoConfig": "a/b--c.D"}, {}, None, "x"]
)
def test_auto_map_is_refused(folder, load, value):
    change_config(folder, auto_map=value)
    with pytest.raises(RefusedError, match="auto_map") as caught:
        load(folder)
    assert caught.value.exit_code == 8 and "delete the key" in caught.value.fix


PROBE = """
import sys
sys.path.insert(0, "")
from pathlib import Path
from ayllu.errors import AylluError
from ayllu.model.weights import load_model

load_model("whole")  # everything that a load imports is imported now
before = set(sys.modules)
try:
    load_model("poisoned")
except AylluError as error:
    print("refused", error.exit_code)
else:
    print("loaded")
print(sorted(set(sys.modules) - before), Path("canary").exists())
"""


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"auto_map": {"AutoModelForCausalLM": "modeling_qwen3.Qwen3ForCausalLM"}},
        {"architectures": ["modeling_qwen3.Qwen3ForCausalLM"]},
        {"architectures": ["os"]},
        {"model_type": "modeling_qwen3"},
        {"_attn_implementation": "kernels-community/evil"},
        {"attn_implementation": "modeling_qwen3:attend"},
        {"custom_pipelines": {"x": {"impl": "modeling_qwen3.P"}}},
        {"trust_remote_code": True},
        {"transformers_version": "__import__('os')"},
    ],
)
def test_nothing_new_is_imported_by_a_load(folder, tmp_path, changes):
    """Python files under every name that a loader might look for, each of which would sing."""
    from small_folder import make_folder

    make_folder(tmp_path / "whole")
    folder.rename(tmp_path / "poisoned")
    canary = tmp_path / "canary"
    for name in (
        "modeling_qwen3",
        "configuration_qwen3",
        "tokenization_qwen3",
        "__init__",
        "setup",
        "conftest",
    ):
        (tmp_path / "poisoned" / f"{name}.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    change_config(tmp_path / "poisoned", **changes)
    done = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    outcome, imports = done.stdout.splitlines()
    refused = "auto_map" in changes or "architectures" in changes
    assert outcome.startswith("refused" if refused else "loaded")
    assert imports == "[] False"


def test_there_is_no_switch_for_code():
    for function in (weights.load_model, weights.load_config, weights.open_weights):
        assert not {"trust_remote_code", "trust", "unsafe"} & set(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    "name",
    ["ayllu.model.families.qwen3", "os", "keys", "names", "../families/qwen3", "qwen3\0", "\udcff", ""],
)
def test_an_architecture_is_looked_up_and_never_imported(folder, name):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"Qwen3ForCausalLM"', json.dumps(name)))
    before = set(sys.modules)
    with pytest.raises(AylluError, match="architecture"):
        load_config(folder)
    assert set(sys.modules) == before
