"""S7: a name in a file is a name inside its folder, or refused (CVE-2024-37032, CVE-2026-7020,
CVE-2024-45436: each time one code path forgot the check).

Two hundred names, put where a shard index names its files. What lies at the other end is a whole shard, so
that a name that got through would load.
"""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest
from small_folder import make_folder

import ayllu
from ayllu.errors import AylluError, BadFileError, ModelFileDamagedError
from ayllu.files import safe_join
from ayllu.model.formats.safetensors import INDEX, shard_path
from ayllu.model.weights import load_model

SHARD = "model-00001-of-00001.safetensors"
UPS = [
    "..",
    "../..",
    "../../../../../../../..",
    "./..",
    "a/..",
    "a/../..",
    ".//..",
    "../.",
    "....//..",
    "..;",
]
SEPARATORS = [
    *("/", "//", "/./", "\\", "\\\\", "/\\", "%2f", "%2F", "%252f", "%5c", "%255c", "%c0%af", "%u2215"),
    *("\u2215", "\u2044", "\uff0f", "\u29f8", "\uff3c", "\ufe68", ":", "\0/", "\n/", "\t/", "\r/"),
]
DOTS = [
    "\uff0e\uff0e",
    "\u2024\u2024",
    "\u2025",
    "\u2026",
    "\ufe52\ufe52",
    "%2e%2e",
    "%252e%252e",
    ".%2e",
    ". .",
    ".. ",
]
WINDOWS = [
    *("C:\\Windows\\x", "C:/Windows/x", "c:x", "\\\\server\\share\\x", "//server/share/x", "\\\\?\\C:\\x"),
    *("\\\\.\\pipe\\x", "CON", "NUL", "aux.safetensors:stream", "x.safetensors::$DATA", "LPT1", "..\\x"),
]
UNIX = [
    *("/etc/passwd", "/dev/zero", "/dev/stdin", "/proc/self/mem", "/proc/self/environ", "/proc/self/fd/0"),
    *("~/x", "~root/x", "$HOME/x", "`id`", "$(id)", "|id", "-rf", "--help", "file:///etc/passwd"),
    *("http://example.org/x.safetensors", "data:,x", "", ".", "..", "/", "//", "\0", "x\0.safetensors", " "),
    *("\n", "a" * 300 + ".safetensors", "\udcff.safetensors", "\u202esrotnesetefas.x", ".hidden.safetensors"),
    *(
        "sub/x.safetensors",
        "./x.safetensors",
        "x.safetensors/",
        "x.safetensors/.",
        "x.bin",
        "x.safetensors\n",
    ),
    *(
        "config.json",
        "*",
        "?",
        "model-*.safetensors",
        "[a].safetensors",
        "\u00e9.safetensors",
        "e\u0301.safetensors",
    ),
]
OUTSIDE = [up + sep + SHARD for up in UPS[:6] for sep in SEPARATORS]
PAYLOADS = list(
    dict.fromkeys(
        [*OUTSIDE, *(up + "/" + SHARD for up in UPS), *(d + "/" + SHARD for d in DOTS), *WINDOWS, *UNIX]
    )
)


def sharded(folder: Path) -> Path:
    """The same model as one shard with an index."""
    make_folder(folder)
    (folder / "model.safetensors").rename(folder / SHARD)
    return folder


def name_all(folder: Path, name: str) -> None:
    """An index in which every tensor is in the file `name`."""
    from safetensors import safe_open

    with safe_open(next(folder.parent.rglob(SHARD)), "pt") as file:
        homes = dict.fromkeys(file.keys(), name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": homes}))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder inside folders that all hold a whole shard, too."""
    root = tmp_path_factory.mktemp("places")
    folder = sharded(root / "outer" / "model")
    for other in (root, root / "outer", folder / "a"):
        other.mkdir(exist_ok=True)
        shutil.copy(folder / SHARD, other / SHARD)
    return folder


def test_there_are_two_hundred():
    assert len(PAYLOADS) >= 200


def test_the_plain_name_loads(places):
    name_all(places, SHARD)
    assert load_model(places).config.width == 32


def test_every_payload_is_refused(places):
    for name in PAYLOADS:
        name_all(places, name)
        with pytest.raises(AylluError) as caught:
            load_model(places)
        assert caught.value.exit_code in (4, 5), name
        assert all(line.isprintable() for line in str(caught.value).split("\n")), name


def test_every_payload_is_refused_before_the_disk_is_asked(tmp_path):
    """Not because such a file happens to be missing: no payload passes as a name."""
    for name in PAYLOADS:
        with pytest.raises(ModelFileDamagedError, match="it names the file"):
            shard_path(tmp_path, name)


@pytest.mark.parametrize(
    "target", ["../../outside.safetensors", "/etc/passwd", "../model/../../outside.safetensors", "loop"]
)
def test_a_link_that_leaves_the_folder(tmp_path, target):
    folder = sharded(tmp_path / "outer" / "model")
    shutil.copy(folder / SHARD, tmp_path / "outside.safetensors")
    (folder / "link.safetensors").symlink_to("link.safetensors" if target == "loop" else target)
    name_all(folder, "link.safetensors")
    with pytest.raises(BadFileError):
        load_model(folder)


def test_a_link_within_the_folder_is_fine(tmp_path):
    folder = sharded(tmp_path / "model")
    (folder / "link.safetensors").symlink_to(SHARD)
    name_all(folder, "link.safetensors")
    assert load_model(folder).config.width == 32


@pytest.mark.parametrize("parent", ["snapshots", "other"])
def test_a_cache_s_blobs_only_serve_its_own_snapshots(tmp_path, parent):
    folder = sharded(tmp_path / "cache" / parent / "1234")
    blobs = tmp_path / "cache" / "blobs"
    blobs.mkdir()
    (folder / SHARD).rename(blobs / SHARD)
    (folder / SHARD).symlink_to(blobs / SHARD)
    name_all(folder, SHARD)
    if parent == "snapshots":
        assert load_model(folder).config.width == 32
        (blobs / SHARD).rename(tmp_path / SHARD)
        (blobs / SHARD).symlink_to(tmp_path / SHARD)
    with pytest.raises(BadFileError, match="leaves the folder"):
        load_model(folder)


def test_safe_join_never_leaves(tmp_path):
    """The one place where a stranger's name meets a folder: whatever it gives is inside."""
    folder = tmp_path / "model"
    (folder / "a").mkdir(parents=True)
    for name in [*PAYLOADS, *(f"{up}/x" for up in UPS)]:
        try:
            path = safe_join(folder, name)
        except BadFileError as error:
            assert all(line.isprintable() for line in str(error).split("\n"))
            continue
        assert path.resolve().is_relative_to(folder.resolve()), name
        assert "\\" not in name and "\0" not in name


def test_a_fifo_or_device_is_not_a_file(tmp_path):
    """Opening one would wait for ever."""
    import os

    folder = make_folder(tmp_path / "model")
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(folder / "aside")
        os.mkfifo(folder / name)
        with pytest.raises(AylluError):
            load_model(folder)
        (folder / name).unlink()
        (folder / "aside").rename(folder / name)
    load_model(folder)


def test_names_out_of_files_are_joined_in_one_place():
    """In the readers of foreign folders no path is made with a value that came out of a file, but by
    shard_path: the right side of every `/` is a constant of the program."""
    allowed = {("safetensors.py", "shard_path")}
    constants = {"SINGLE", "INDEX"}
    found = []
    root = Path(ayllu.__file__).parent / "model"
    for path in [*sorted((root / "formats").glob("safetensors.py")), root / "weights.py"]:
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef) or function.name in (
                "save_safetensors",
                "save_model",
            ):
                continue
            for node in ast.walk(function):
                join = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
                if not join or isinstance(node.right, ast.Constant):
                    continue
                if isinstance(node.right, ast.Name) and node.right.id in constants:
                    continue
                if (path.name, function.name) not in allowed:
                    found.append(f"{path.name}: {function.name}: {ast.unparse(node)}")
    # The message that a shard is missing names it after shard_path has passed it.
    assert found == ["safetensors.py: _open_shards: folder / file_name"]
