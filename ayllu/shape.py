"""What a model is and what it costs, before a byte of it is loaded: `ayllu show`.

A preset's name or a folder's config gives a ModelConfig; everything else is counted (model/counts.py) and
set against this machine's memory. With `measure` the memory's speed is taken, too: decoding reads every
active weight once a token, so that bandwidth / bytes bounds the tokens a second (machine.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ayllu import machine
from ayllu.errors import InputNotFoundError, UsageError
from ayllu.model import counts
from ayllu.model.config import AttentionSpec, LatentSpec, LayerSpec, MLPSpec, ModelConfig, RopeSpec
from ayllu.model.presets import Preset, number, preset, presets
from ayllu.models import resolve_model

_CACHE = "bfloat16"  # the cache's type where one has to be chosen
_SYSTEM = 0.1  # of the memory stays with the system and the activations
_LONGEST_PATTERN = 16


def describe(name: str, *, length: int | None = None, measure: bool = False) -> dict[str, Any]:
    """Shape, counts and costs of the preset, folder or file `name`, ready for JSON.

    `length`: tokens of text for the cache and the operations (default: the context, at most 8,192).
    Errors: InputNotFoundError with the nearest names; UsageError for an impossible length; those of
    `load_config` for a folder.
    """
    found, config = _find(name)
    if length is None:
        length = min(config.context, 8192)
    if not 1 <= length <= config.context:
        raise UsageError(
            f"--length {length} is not possible",
            why=f"this model's context is {config.context:,} tokens",
            fix=f"give a length from 1 to {config.context}",
        )
    total, active = counts.parameters(config), counts.active_parameters(config)
    described: dict[str, Any] = {"name": found.name if found else name, "family": config.family}
    if found:
        described |= _published(found, total)
    return described | {
        "width": config.width,
        "vocabulary": config.vocab_size,
        "context": config.context,
        "positions": config.positions,
        "tied": config.tied,
        "norm": {"rms": "RMSNorm", "layer": "LayerNorm"}[config.norm],
        "layers": pattern(config),
        "parameters": {
            "total": total,
            "active": active,
            "embedding": counts.embedding_parameters(config),
        },
        "weight_bytes": {kind: counts.weight_bytes(config, kind) for kind in counts.WEIGHT_BITS},
        "length": length,
        "cache_bytes_per_token": {kind: counts.cache_growth(config, kind) for kind in counts.CACHE_BYTES},
        "cache_bytes": {kind: counts.cache_bytes(config, length, kind) for kind in counts.CACHE_BYTES},
        "flops_per_token": counts.forward_flops_per_token(config, length),
        "train_flops_per_token": counts.train_flops_per_token(config, length),
        "machine": _fit(config, measure=measure),
    }


def listing() -> list[dict[str, str]]:
    """All presets: name, title, published counts."""
    return [
        {"name": p.name, "title": p.title, "parameters": p.total, "active": p.active}
        for p in presets().values()
    ]


def _find(name: str) -> tuple[Preset | None, ModelConfig]:
    """A path that exists, a name under models/, or a preset."""
    from ayllu.model.weights import load_config

    path = Path(name)
    if path.is_file() or (path / "params.json").is_file():
        return None, load_config(path)
    if path.exists() or (path.name == name and (Path("models") / name).is_dir()):
        return None, load_config(resolve_model(name))
    if path.name != name:
        raise InputNotFoundError(f"there is no {name}", fix="name a model folder, a .gguf file or a preset")
    found = preset(name)
    return found, found.config()


def _published(found: Preset, total: int) -> dict[str, Any]:
    """What the publisher says, and how far our count is from it."""
    said: dict[str, Any] = {"title": found.title, "estimate": found.estimate}
    said["published"] = {"total": found.total, "active": found.active or None, "source": found.source}
    said["deviation"] = (total + found.besides) / number(found.total) - 1
    return said | ({"note": found.note} if found.note else {})


# ---- layers in words
def pattern(config: ModelConfig) -> list[dict[str, Any]]:
    """The layers from first to last: [{"times": n, "layers": [{"count": m, "attention", "mlp"}]}].

    A pattern that repeats (three windowed layers, one without) is said once.
    """
    words = [(_attention(layer.attention), _mlp(layer)) for layer in config.layers]
    period = next(
        (
            n
            for n in range(1, _LONGEST_PATTERN + 1)
            if all(a == b for a, b in zip(words, words[n:], strict=False))
        ),
        len(words),
    )
    if 2 * period > len(words):
        period = len(words)
    times, rest = divmod(len(words), period)
    groups = [{"times": times, "layers": _runs(words[:period])}]
    return groups + ([{"times": 1, "layers": _runs(words[-rest:])}] if rest else [])


def _runs(words: list[tuple[str, str]]) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = []
    for attention, mlp in words:
        if runs and (runs[-1]["attention"], runs[-1]["mlp"]) == (attention, mlp):
            runs[-1]["count"] += 1
        else:
            runs.append({"count": 1, "attention": attention, "mlp": mlp})
    return runs


def _attention(spec: AttentionSpec | LatentSpec) -> str:
    if isinstance(spec, LatentSpec):
        said = [f"{spec.heads} heads of {spec.nope_dim} + {spec.rope_dim}, latent of {spec.kv_rank}"]
        said += [f"queries through {spec.q_rank:,}"] if spec.q_rank else []
    else:
        shared = "" if spec.kv_heads == spec.heads else f", {spec.kv_heads} key-value"
        said = [f"{spec.heads} heads{shared} of {spec.head_dim}"]
        said += [f"query-key norm ({spec.qk_norm})"] if spec.qk_norm else []
        said += ["temperature grows"] if spec.temperature else []
    said += [_rope(spec.rope)]
    said += [f"window {spec.window:,}"] if spec.window else []
    said += [f"chunks of {spec.chunk:,}"] if spec.chunk else []
    said += [f"scores within {spec.softcap:g}"] if spec.softcap else []
    return ", ".join(said + (["biases"] if spec.bias else []))


def _rope(spec: RopeSpec | None) -> str:
    if spec is None:
        return "no rotation"
    if spec.scaling is None:
        return f"RoPE {spec.theta:,.0f}"
    beyond = f" beyond {spec.scaling.original_context:,}" if spec.scaling.original_context else ""
    return f"RoPE {spec.theta:,.0f} ({spec.scaling.kind} x {spec.scaling.factor:g}{beyond})"


def _mlp(layer: LayerSpec) -> str:
    spec, beside = layer.mlp, " beside the attention" if layer.parallel else ""
    if isinstance(spec, MLPSpec):
        return f"{'gated ' if spec.gated else ''}MLP {spec.hidden:,} ({spec.activation}){beside}"
    shared = f" and a shared one of {spec.shared_hidden:,}" if spec.shared_hidden else ""
    return (
        f"{spec.active} of {spec.experts} experts of {spec.hidden:,}{shared} ({spec.router} router){beside}"
    )


# ---- this machine
def _fit(config: ModelConfig, *, measure: bool) -> dict[str, Any]:
    """For each place and format: whether the weights fit, tokens of cache beside them, tokens a second."""
    places = {"memory": machine.memory_bytes()}
    if machine.cuda_may_be_here():
        import torch

        if torch.cuda.is_available():
            places["gpu"] = torch.cuda.get_device_properties(0).total_memory
    fits: dict[str, Any] = {}
    for place, size in places.items():
        speed = None
        if measure:
            speed = machine.measure_read_bandwidth(device="cuda" if place == "gpu" else "cpu")
        formats = {kind: _fits(config, kind, int(size * (1 - _SYSTEM)), speed) for kind in counts.WEIGHT_BITS}
        fits[place] = {"bytes": size, "bandwidth": speed, "formats": formats}
    return fits


def _fits(config: ModelConfig, kind: str, room: int, speed: float | None) -> dict[str, Any]:
    left = room - counts.weight_bytes(config, kind)
    tokens = counts.longest_cache(config, left, _CACHE) if left > 0 else 0
    rate = speed / counts.weight_bytes(config, kind, active=True) if speed and tokens else None
    return {"fits": tokens > 0, "cache_tokens": tokens, "tokens_per_second": rate}


# ---- as text
def page(said: dict[str, Any]) -> str:
    """`describe`'s result for people."""
    lines = [f"{said['title']} ({said['name']})" if "title" in said else said["name"], ""]
    if said.get("estimate"):
        lines[0] += ", an estimate"
    lines += [*_shape_lines(said), "", *_cost_lines(said), "", *_machine_lines(said)]
    return "\n".join(lines)


def _row(name: str, text: str) -> str:
    return f"{name:20}{text}"


def _shape_lines(said: dict[str, Any]) -> list[str]:
    head = "tied head" if said["tied"] else "own head"
    lines = [
        _row("family", said["family"]),
        _row("width", f"{said['width']:,} channels, {said['norm']}"),
        _row("vocabulary", f"{said['vocabulary']:,} tokens, {head}"),
        _row("context", f"{said['context']:,} tokens" + (", learned positions" if said["positions"] else "")),
    ]
    for group in said["layers"]:
        times, indent = group["times"], ""
        if times > 1 and len(group["layers"]) > 1:
            lines.append(_row("layers", f"{times} times:"))
            times, indent = 1, "  "
        for run in group["layers"]:
            lines.append(
                _row(
                    "layers" if not indent else "",
                    f"{indent}{_layers(times * run['count'])}: {run['attention']}",
                )
            )
            lines.append(_row("", f"{indent}  {run['mlp']}"))
    return lines


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


def _cost_lines(said: dict[str, Any]) -> list[str]:
    weights, lines = said["parameters"], []
    lines.append(_row("parameters", f"{amount(weights['total'])} ({weights['total']:,})"))
    if "published" in said:
        published = said["published"]
        shown = published["total"] + (f", {published['active']} active" if published["active"] else "")
        lines.append(_row("  published", f"{shown} ({said['deviation']:+.2%}): {published['source']}"))
    if said.get("note"):
        lines.append(_row("  note", said["note"]))
    lines.append(_row("  active a token", amount(weights["active"])))
    lines.append(_row("  embedding, head", amount(weights["embedding"])))
    lines.append("")
    lines.append(_row("weights", _each(said["weight_bytes"])))
    lines.append(_row("cache a token", _each(said["cache_bytes_per_token"])))
    lines.append(_row(f"cache at {said['length']:,}", _each(said["cache_bytes"])))
    forward, training = said["flops_per_token"], said["train_flops_per_token"]
    lines.append(_row("operations a token", f"{forward:.3g} forward, {training:.3g} in training"))
    return lines


def _machine_lines(said: dict[str, Any]) -> list[str]:
    lines = []
    for place, fit in said["machine"].items():
        speed = f", reads {fit['bandwidth'] / 1e9:.1f} GB/s" if fit["bandwidth"] else ""
        lines.append(
            _row(
                {"memory": "this machine", "gpu": "its GPU"}[place],
                f"{size(fit['bytes'])}{speed} ({1 - _SYSTEM:.0%} of it counted)",
            )
        )
        for kind, found in fit["formats"].items():
            if not found["fits"]:
                lines.append(_row(f"  {kind}", "does not fit"))
                continue
            rate = found["tokens_per_second"]
            fast = f", at most {rate:,.1f} tokens/s" if rate else ""
            lines.append(
                _row(f"  {kind}", f"fits, with {found['cache_tokens']:,} tokens in a {_CACHE} cache{fast}")
            )
    return lines


def _each(table: dict[str, int]) -> str:
    return ", ".join(f"{size(value)} {kind}" for kind, value in table.items())


def amount(count: float) -> str:
    """6738415616 -> "6.74 billion"."""
    for unit, name in ((1e12, " trillion"), (1e9, " billion"), (1e6, " million")):
        if count >= unit:
            return f"{count / unit:.4g}{name}"
    return f"{count:,.0f}"


def size(count: float) -> str:
    """Bytes in powers of ten: 13476831232 -> "13.5 GB"."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} bytes"


def list_page(found: list[dict[str, str]]) -> str:
    """`listing`'s result for people."""
    lines = [f"{'preset':22}{'parameters':>11}{'active':>9}  model"]
    lines += [f"{p['name']:22}{p['parameters']:>11}{p['active']:>9}  {p['title']}" for p in found]
    return "\n".join(
        [*lines, "", "ayllu show PRESET tells more; so does ayllu show FOLDER of a model on disk."]
    )
