"""What the documents say is so: commands of the README run, pasted answers are what the code gives, files and
names exist, tables agree with the code.

Every fenced `sh` line of the README is either run here, in a folder with a small random model, or is one of
CI's own (`make demo`, ...), which must be targets of the Makefile. Every fenced `python` block is run.
"""

from __future__ import annotations

import ast
import inspect
import json
import lzma
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ayllu import errors
from ayllu.errors import AylluError
from ayllu.files import write_json
from ayllu.model.config import ModelConfig, ModelSettings
from ayllu.model.counts import parameters
from ayllu.model.decoder import Decoder
from ayllu.model.weights import save_model
from ayllu.progress import Progress
from ayllu.reason.tasks.arithmetic import add_lines
from ayllu.reason.tasks.countdown import check
from ayllu.reason.transcript import Chat, call_text
from ayllu.release import ReleaseSettings, release
from ayllu.stage import StageContext
from ayllu.stages import STAGES
from ayllu.text.tokenizer import CONTROL, train_tokenizer
from ayllu.tools.calculator import CALCULATOR
from ayllu.tools.tool import Call, Toolbox
from ayllu.train.pretrain import PretrainSettings
from ayllu.train.rl import RlSettings
from ayllu.train.sft import SftSettings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TOKEN = (ROOT / "docs" / "how-a-token-is-made.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TOP = r"ayllu|tests|docs|recipes|data|bench|\.ci"  # runs/ and .venv/ are made by the reader
CI = {"make setup", "make demo", "make test", "make lint"}  # what CI, or a person, runs as a whole
PLACEHOLDER = re.compile(r"\{\{[a-z0-9_.]+\}\}")


def blocks(language: str, text: str = README) -> list[str]:
    """Contents of the fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


COMMANDS = [
    line for block in blocks("sh") for line in block.splitlines() if line and not line.startswith("#")
]


# ---- a folder like the reader's
@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/demo with a released random model, the README's own recipe, and the text that it names."""
    home = tmp_path_factory.mktemp("home")
    packed = ROOT / "data" / "default" / "default-corpus.jsonl.xz"
    with lzma.open(packed, "rt", encoding="utf-8") as corpus:
        texts = [json.loads(line)["text"][:6000] for _, line in zip(range(40), corpus, strict=False)]
    recipe = tomllib.loads(blocks("toml")[0])
    mine = home / recipe["text"]["corpus"][0]
    mine.mkdir()
    for number, text in enumerate(texts):
        (mine / f"{number}.txt").write_text(text, encoding="utf-8")
    (home / "recipes").mkdir()
    name = re.match(r"# recipes/(\S+)\n", blocks("toml")[0])
    assert name, "the README says where its recipe goes"
    (home / "recipes" / name[1]).write_text(blocks("toml")[0], encoding="utf-8")
    _release(home / "runs" / "demo", texts)
    return home


def _release(run: Path, texts: list[str]) -> None:
    names = [stage.name for stage in STAGES if stage.name != "release"]
    for name in names:
        (run / name).mkdir(parents=True)
        write_json(run / name / "stage.json", {"seconds": 1.0, "peak_memory_mb": 9.0, "result": {}})
    (run / "recipe.toml").write_text('name = "demo"\nseed = 1\n')
    write_json(run / "text" / "manifest.json", {"format": 1, "train": {}, "licences": {}})
    (run / "text" / "ATTRIBUTION.md").write_text("# Sources\n")
    tokenizer = train_tokenizer(iter(texts), 400)
    tokenizer.save(run / "tokenizer")
    config = ModelSettings(width=32, layers=1, head_dim=16, context=96).config(tokenizer.vocab_size)
    (run / "rl" / "model").mkdir()
    save_model(Decoder(config).initialise(1), run / "rl" / "model", bos=0, eos=1, pad=12)
    (run / "model").mkdir()
    context = StageContext(
        folder=run / "model", inputs={name: run / name for name in names}, seed=1, threads=1, device="cpu",
        progress=Progress("release", quiet=True), metrics=run / "metrics.jsonl", root=run.parent.parent,
    )  # fmt: skip
    release(context, ReleaseSettings())


@pytest.fixture(scope="module")
def shell(home: Path) -> dict[str, str]:
    """The environment of the commands: `ayllu` is this checkout's program."""
    program = home / "bin" / "ayllu"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ayllu "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@contextmanager
def serving(command: str, home: Path, env: dict[str, str]) -> Iterator[str]:
    """The URL of a running `ayllu serve ...` on a free port; ended as a person would, by Ctrl-C."""
    words = [sys.executable, "-m", "ayllu", *shlex.split(command)[1:], "--port", "0"]
    with subprocess.Popen(words, cwd=home, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        late = threading.Timer(60, process.kill)
        late.start()
        try:
            said = process.stderr.readline()
            url = re.search(r"answers at (http://\S+/v1)", said)
            assert url, said
            yield url[1]
            process.send_signal(signal.SIGINT)
            rest = process.communicate(timeout=20)[1]
            assert process.returncode in (0, 130) and "Traceback" not in rest, rest
        finally:
            late.cancel()
            process.kill()


# ---- the commands
def test_commands_of_ci_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {command.removeprefix("make ") for command in CI} <= targets
    assert COMMANDS[:2] == ["make demo", "make test"], "the two commands come first"
    assert [c for c in COMMANDS if c.startswith("make ") and c not in CI] == []


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c not in CI and not c.startswith("ayllu serve ")], ids=str
)
def test_command_of_the_readme(command: str, home: Path, shell: dict[str, str]) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=home, env=shell, input="Hi\n/help\n/quit\n",
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    # A random model may use up its context before it begins to answer.
    cut_off = "ayllu run" in command and "cut off before it began" in done.stderr
    assert done.returncode == (1 if cut_off else 0), done.stderr
    if "--json" in command:
        assert {"answer", "reasoning", "calls", "finish_reason"} <= json.loads(done.stdout).keys()
    if "--until" in command:
        folder = home / done.stdout.split(":")[0]
        last = shlex.split(command)[-1]
        assert (folder / last / "stage.json").is_file() and f"{last} done" in done.stdout
    if " report " in command:
        assert (home / "runs" / "demo" / "report.html").is_file()


def test_python_of_the_readme(home: Path, shell: dict[str, str]) -> None:
    client, library = blocks("python")
    (serve,) = [c for c in COMMANDS if c.startswith("ayllu serve ")]
    with serving(serve, home, shell) as url:
        _python(client.replace("http://127.0.0.1:8080/v1", url), home, shell)
        assert url not in client and "http://127.0.0.1:8080/v1" in client
    said = _python(library, home, shell)
    assert said.startswith("torch.Size([1, ") and said.rstrip().endswith(("stop", "length"))


def _python(program: str, home: Path, env: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=home,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- what was pasted
def test_pasted_answers_are_right() -> None:
    asked = [shlex.split(c)[3] for c in COMMANDS if c.startswith("ayllu run ")][:3]
    (pasted,) = [block for block in blocks("text") if "<- " in block]
    lines = pasted.splitlines()
    numbers = [int(n) for n in re.findall(r"\d+", asked[0])]
    total = [*add_lines(*numbers), str(sum(numbers))]
    assert lines[: len(total)] == total
    call, result, answer = lines[len(total) : len(total) + 3]
    large = [int(n) for n in re.findall(r"\d+", asked[1])]
    assert call == "-> " + call_text("calculator", {"expression": "+".join(map(str, large))})
    ran = Toolbox([CALCULATOR]).call(Call.parse(call.removeprefix("-> ")))
    assert ran.ok and result == f"<- {ran.text}" and answer == ran.text == str(sum(large))
    *_, search, expression = lines[len(total) + 3 :]
    *given, target = (int(n) for n in re.findall(r"\d+", asked[2]))
    assert search.endswith(f"={target}!") and check(expression, given, target) == (True, "")


def test_pasted_output_of_the_demo_names_every_stage() -> None:
    """Once it is pasted: the order of the stages, and how `ayllu make` ends."""
    pasted = blocks("text")[0]
    order = [
        line.split()[0] for line in pasted.splitlines() if line.split()[:1] in [[s.name] for s in STAGES]
    ]
    assert list(dict.fromkeys(order)) == [stage.name for stage in STAGES]
    assert re.search(
        r"^The model is in runs/demo/model, made in [\d:]+; report: runs/demo/report.html$", pasted, re.M
    )


def test_no_placeholder_is_left() -> None:
    assert PLACEHOLDER.findall(README) == []


def test_the_run_folder_of_the_readme(home: Path) -> None:
    (tree,) = [block for block in blocks("text") if block.startswith("runs/demo/\n")]
    named = set(re.findall(r"(?<![\w.])([a-z]+)/", tree)) - {"runs", "demo"}
    assert named == {stage.folder(Path("runs/demo")).name for stage in STAGES}
    rows = re.findall(r"^\| ([a-z]+) \|", README, re.M)
    assert [row for row in rows if row in named | {"release"}] == [stage.name for stage in STAGES]


# ---- files and names
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_in_documents_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    linked = [(document.parent, target) for target in re.findall(r"\]\(([^)#:]+)\)", text)]
    coded = [(ROOT, path) for path in re.findall(rf"`((?:{TOP})/[\w./-]*)", text)]
    mine = {"recipes/" + name for name in re.findall(r"^# recipes/(\S+)$", README, re.M)}
    missing = [path for base, path in linked + coded if not (base / path).exists() and path not in mine]
    assert missing == []
    if document.name == "README.md":
        assert len(linked) > 5 and len(coded) > 20, "the patterns above find what they look for"


REFERENCES = sorted(set(re.findall(r"`(ayllu/[\w/.]+):([\w.]+)`", TOKEN)))


def test_there_are_references() -> None:
    assert len(REFERENCES) > 50


@pytest.mark.parametrize(("path", "name"), REFERENCES, ids=[f"{path}:{name}" for path, name in REFERENCES])
def test_names_in_how_a_token_is_made_exist(path: str, name: str) -> None:
    source = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".py"):
        assert name in _defined(ast.parse(source)), f"{path} defines no {name}"
    else:
        assert re.search(rf"^[\w:<> ]+ {name}\(", source, re.M), f"{path} defines no {name}"


def _defined(tree: ast.Module) -> set[str]:
    """Functions, classes, methods and constants of a module, as `name` or `Class.name`."""
    found = set[str]()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)
            }
        if isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


# ---- numbers that the code decides
@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    return tomllib.loads((ROOT / "recipes" / "demo.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def config(recipe: dict[str, Any]) -> ModelConfig:
    return ModelSettings(**recipe.get("model", {})).config(recipe["tokenizer"]["vocabulary"])


def test_sizes_of_the_demo_model(config: ModelConfig) -> None:
    spec, mlp, text = config.layers[0].attention, config.layers[0].mlp, " ".join(TOKEN.split())
    rows = (spec.heads + 2 * spec.kv_heads) * spec.head_dim
    cached = 2 * len(config.layers) * spec.kv_heads * spec.head_dim
    for said in (
        f"| vocabulary | {config.vocab_size:,} pieces |",
        f"| width C | {config.width} channels |",
        f"| layers | {len(config.layers)} |",
        f"| {spec.heads} and {spec.kv_heads} of D = {spec.head_dim} |",
        f"| MLP | {mlp.hidden} channels |",
        f"| context | {config.context} tokens |",
        f"| weights in all | {parameters(config):,} |",
        f"| of these in the embedding | {config.vocab_size * config.width:,} |",
        f"({rows}, {config.width}) matrix gives {spec.heads} query heads",
        f"({2 * mlp.hidden}, {config.width}) matrix for gate and up",
        f"{cached} numbers, {4 * cached:,} bytes in float32",
    ):
        assert said in text, said
    assert f"{parameters(config) / 1e6:.1f} million parameters" in README
    assert f"context is {config.context} tokens" in README


def test_numbers_of_the_training(recipe: dict[str, Any]) -> None:
    text = " ".join(TOKEN.split())
    pre, sft, rl = (
        kind(**recipe.get(table, {}))
        for kind, table in ((PretrainSettings, "pretrain"), (SftSettings, "sft"), (RlSettings, "rl"))
    )
    batch = pre.rows * pre.length
    assert f"{pre.tokens // batch} such steps of {batch:,} tokens" in text
    assert f"{pre.rows} windows of {pre.length} tokens" in text
    assert f"`ayllu/train/sft.py:sft` takes {sft.steps:,} steps" in text
    assert f"takes {rl.steps} updates of GRPO" in text and f"samples {rl.size} answers" in text
    assert f"until {rl.groups} are informative" in text


def test_the_spans_of_the_example() -> None:
    """Ids of digits and control tokens don't depend on the corpus; the spans are the transcript's."""
    tokenizer = train_tokenizer(iter([TOKEN] * 3), 400)
    assert tokenizer.encode("417") == [35, 32, 38] and "ids 35 32 38" in TOKEN
    assert (CONTROL[0], CONTROL[1], CONTROL[3]) == ("<|bos|>", "<|end|>", "<|user|>") and len(CONTROL) == 16
    begun = Chat(tokenizer).start("What is 417 + 385?", tools=("calculator",))
    shown = re.findall(r"^    (?:system|user) +(.*)$", TOKEN, re.M)
    for span, line in zip(begun.spans, shown, strict=True):
        control = [tokenizer.inner.id_to_token(i) for i in span.ids if i < len(CONTROL)]
        assert re.findall(r"<\|[a-z/]+\|>", line) == control
        plain = re.sub(r"<\|[a-z/]+\|>", "", line)
        assert plain.replace(" ", "") == tokenizer.decode(span.ids).replace(" ", "")


# ---- docs/errors.md
def test_error_table_is_that_of_the_code() -> None:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `(\w+)` \| (?:`(\w+)`)? *\| `(\w+)` \| (\d+) \| (.+) \|$", text, re.M)
    classes = [c for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, AylluError)]
    wanted = [
        (c.__name__, "" if c is AylluError else c.__bases__[0].__name__, c.code, str(c.exit_code), _doc(c))
        for c in classes
    ]
    assert table == wanted
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", text.split("## Classes")[0], re.M)}
    assert listed == {0} | {c.exit_code for c in classes}


def _doc(cls: type) -> str:
    return " ".join((cls.__doc__ or "").split())
