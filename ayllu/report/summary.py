"""What a report says: the numbers of a run, gathered from its stages' results.

Keys that other programs rely on: `wall_seconds`, `stages.{name}.seconds`, `pretrain.bits_per_byte`,
`pretrain.xz_bits_per_byte`, `evals.{family}.{sft,rl}.{n,correct,low,high}`, `machine`, `seed`,
`weights_sha256`, `finished`. A number that no stage reported is absent, never guessed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ayllu.files import plain

STAGES = ("text", "tokenizer", "pretrain", "sft", "rl", "eval", "release")
# Those that a run has only when its recipe names them; each before a stage that every run has.
OPTIONAL = {"guard": "text", "expert": "rl", "verifier": "eval", "distill": "eval"}
WHEN = ("sft", "rl")  # an evaluation is made after each of these


def summarise(
    recipe: dict[str, Any], stages: dict[str, dict[str, Any]], machine: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The content of report.json. `machine`, unless given, is the one on which the last stage was made (a
    run may go on elsewhere: then all are in `machines`), and before any is made this one."""
    done = [name for name in in_order() if name in stages]
    made_on = [stages[name]["machine"] for name in done if stages[name].get("machine")]
    if machine is None:
        from ayllu.machine import describe

        threads = recipe.get("threads")
        machine = made_on[-1] if made_on else describe(threads if isinstance(threads, int) else 0)
    # Chips of one trade name may compute with other instructions; an update of the system is the same
    # machine.
    kinds = list({plain_key(m): m for m in made_on}.values())
    code = {name: versions for name in done if (versions := _versions(stages[name]))}
    results = {name: stages[name].get("result") or {} for name in done}
    times = {
        name: {key: stages[name][key] for key in ("seconds", "peak_memory_mb") if key in stages[name]}
        for name in done
    }
    wanted = [name for name in in_order() if name in STAGES or name in recipe]
    missing = [name for name in wanted if name not in stages]
    report: dict[str, Any] = {
        "finished": not missing,
        "missing": missing,
        "wall_seconds": round(sum(t.get("seconds", 0.0) for t in times.values()), 3),
        "seed": find_seed(recipe),
        "weights_sha256": weights_sha256(results),
        "machine": machine,
        **({"machines": kinds} if len(kinds) > 1 else {}),
        "code": code,
        "stages": times,
        "evals": evals_of(results.get("eval", {})),
        "samples": samples_of(results.get("eval", {})),
    }
    report |= {name: result for name, result in results.items() if name != "eval"}
    report["recipe"] = recipe
    return plain(report)


def plain_key(machine: dict[str, Any]) -> str:
    """What tells machines apart, as text."""
    changing = ("system", "python", "torch", "threads", "logical_processors", "memory_gib")
    return json.dumps({k: v for k, v in machine.items() if k not in changing}, sort_keys=True, default=str)


def _versions(stage: dict[str, Any]) -> dict[str, int]:
    """The CODE_VERSION of each function that made a stage's result, from its stage.json."""
    basis = stage.get("basis")
    code = basis.get("code") if isinstance(basis, dict) else None
    return {k: v for k, v in code.items() if type(v) is int} if isinstance(code, dict) else {}


def in_order() -> list[str]:
    """All stages that a run can have."""
    return [
        name
        for stage in STAGES
        for name in (*(extra for extra, before in OPTIONAL.items() if before == stage), stage)
    ]


def evals_of(result: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """`{family: {"sft": {...}, "rl": {...}, "gain": {...}}}` from an eval result."""
    families = {}
    for family, both in result.items():
        if not isinstance(both, dict):
            continue
        rows = {when: both[when] for when in WHEN if isinstance(both.get(when), dict) and "n" in both[when]}
        if rows:
            families[family] = rows | ({"gain": both["gain"]} if isinstance(both.get("gain"), dict) else {})
    return families


def samples_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One right and one wrong answer of each family, after the last training that was evaluated.

    Rows as the eval stage writes them: family, when ("after RL"), prompt, wanted, correct, why, spans
    ([kind, text] each). They are the first ones that the evaluation kept, not the best.
    """
    rows = result.get("samples") or []
    chosen = []
    for family in dict.fromkeys(row["family"] for row in rows):
        mine = [row for row in rows if row["family"] == family]
        last = [row for row in mine if row["when"] == mine[-1]["when"]]
        for correct in (True, False):
            chosen += [row for row in last if row["correct"] is correct][:1]
    return chosen


def weights_sha256(results: dict[str, dict[str, Any]]) -> str | None:
    """The hash of the released weights."""
    value = results.get("release", {}).get("weights_sha256")
    return str(value) if value else None


def find_seed(recipe: dict[str, Any]) -> int | None:
    """The run's seed: a key of the recipe or of its [run] table."""
    run = recipe.get("run")
    seed = recipe.get("seed", run.get("seed") if isinstance(run, dict) else None)
    return seed if isinstance(seed, int) else None


def read_stages(run: Path) -> dict[str, dict[str, Any]]:
    """The finished stages of a run folder, from each one's stage.json; those without one are left out."""
    stages = {}
    for name in in_order():
        path = run / name / "stage.json"
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(value, dict) and "result" in value:
            stages[name] = value
    return stages


def read_metrics(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of metrics.jsonl by stage, by rising step.

    A killed and resumed run has written some steps twice (the later row counts) and may have left
    half a line; both are ordinary here.
    """
    rows: dict[str, dict[float, dict[str, Any]]] = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), (int, float)):
            known = rows.setdefault(str(row.get("stage")), {})
            known[row["step"]] = {**known.get(row["step"], {}), **row}
    return {stage: [by_step[step] for step in sorted(by_step)] for stage, by_step in rows.items()}
