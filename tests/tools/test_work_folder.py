"""Folders that model-written code may work in: none that version control or others run, and none is made."""

# ruff: noqa: PTH208

import os
from pathlib import Path

import pytest

from ayllu.errors import RefusedError
from ayllu.tools import sandbox as sandbox_module
from ayllu.tools import work_folder
from ayllu.tools.sandbox import Limits, Sandbox
from ayllu.tools.walls import folder


@pytest.mark.parametrize("place", [Path.home(), Path("/"), Path(__file__).parents[2]])
def test_folders_that_hold_more_than_work_are_refused(place):
    with pytest.raises(RefusedError, match="not given"):
        Sandbox(place)


BARE = ("HEAD", "objects/", "refs/", "config")


def make(root, *names):
    """Files of these names, folders where they end in /."""
    for name in names:
        place = root / name
        (place if name.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            place.touch()


@pytest.mark.parametrize(
    "names",
    [
        ("a/.git/hooks/",),
        ("a/b/c/d/.hg/",),
        ("a/.Git/config",),
        ("a/.git",),  # a file: it says where the rest is
        [f"a/store/{name}" for name in BARE],
        ("a/HEAD", "a/commondir"),
        BARE,
    ],
)
def test_a_checkout_is_refused_at_any_depth(tmp_path, names):
    make(tmp_path, *names)
    with pytest.raises(RefusedError, match="not given"):
        Sandbox(tmp_path)


def test_what_only_looks_like_a_checkout_is_none(tmp_path):
    make(tmp_path, "git/.gitignore", "a/HEAD", "a/refs/", "b/objects/", ".github/config")
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    make(elsewhere, ".git/config")
    (tmp_path / "link").symlink_to(elsewhere)  # which code can't follow either
    assert work_folder.checked(tmp_path, 1000) == tmp_path.resolve()


@pytest.mark.parametrize("inside", [".git/hooks", ".git", "store/hooks"])
def test_a_folder_of_version_control_itself_is_refused(tmp_path, inside):
    make(tmp_path, ".git/hooks/", *(f"store/{name}" for name in BARE))
    with pytest.raises(RefusedError, match="not given"):
        Sandbox(tmp_path / inside)


def test_code_can_not_make_a_checkout(tmp_path):
    """`git status`, which many a shell's prompt runs, would run what its settings say."""
    make(tmp_path, "data/x", "HEAD")
    (tmp_path / "data").chmod(0o777)  # run by root, code is another user
    there = folder.sizes(tmp_path)
    setting = "import os\nos.makedirs('{0}')\nopen('{0}/config', 'w').write('[core] fsmonitor = evil')\n"
    codes = [
        setting.format("a/.git"),
        setting.format(".hg"),
        setting.format("data/.GIT"),
        "open('data/.git', 'w').write('gitdir: ../data')",
        "import os\nos.mkdir('objects')\nos.mkdir('refs')",  # beside the HEAD that is there
        "import os\nos.mkdir('d', 0o300)\nos.mkdir('d/.git')",
        setting.format("m/.git") + "raise SystemExit(3)",
    ]
    with Sandbox(tmp_path) as kept:
        for code in codes:
            outcome = kept.run(code)
            assert (outcome.why_stopped, outcome.exit) == ("checkout", None), code
            assert folder.sizes(tmp_path) == there
        assert kept.run("import os\nos.mkdir('fine')\nopen('fine/config', 'w')").ok
        make(tmp_path, "mine/.git/config")  # the user's own, since
        outcome = kept.run("open('mine/.git/config', 'w').write('evil')")
        assert outcome.why_stopped == "checkout" and "mine/.git" in outcome.stderr
        assert (tmp_path / "mine" / ".git" / "config").read_text() == ""


def test_a_call_that_makes_a_checkout_is_stopped_at_once(tmp_path):
    code = "import os, time\nos.mkdir('.git')\nprint('made', flush=True)\ntime.sleep(500)"
    with Sandbox(tmp_path, Limits(seconds=400)) as kept:
        outcome = kept.run(code)
    assert (outcome.why_stopped, os.listdir(tmp_path)) == ("checkout", []) and outcome.seconds < 300


@pytest.mark.parametrize("hooks", [".git", ".hg"])
def test_a_checkout_is_refused_and_a_folder_in_it_is_not(tmp_path, hooks):
    """A hook that code writes there is run by its owner's next command."""
    (tmp_path / hooks).mkdir()
    with pytest.raises(RefusedError, match="not given"):
        Sandbox(tmp_path)
    with Sandbox(tmp_path / "inside") as made:
        assert made.run("print(1)").ok


def test_folders_that_others_run_are_refused(monkeypatch):
    import json

    package = Path(sandbox_module.__file__).parent
    for place in (package, package / "walls", Path(json.__file__).parent):
        with pytest.raises(RefusedError, match="not given"):
            Sandbox(place)
    monkeypatch.setattr(os, "geteuid", lambda: 0)  # whose folder would be given away
    with pytest.raises(RefusedError, match="belongs to the system"):
        work_folder.checked(Path("/etc/ssl"), 1000)
