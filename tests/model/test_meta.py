"""Meta's consolidated files: merged, renamed and reordered right, against transformers; and pickles that
would run code, archives that lie, settings that make no sense."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import threading
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ayllu.errors import AylluError, ModelFileDamagedError, ModelFileMissingError, RefusedError
from ayllu.model.formats.meta import open_meta
from ayllu.model.formats.storages import StorageFile

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

LLAMA_1 = {"dim": 32, "n_layers": 2, "n_heads": 4, "multiple_of": 8, "norm_eps": 1e-6, "vocab_size": -1}
LLAMA_2 = {
    "dim": 64, "n_layers": 3, "n_heads": 8, "n_kv_heads": 4, "multiple_of": 16, "ffn_dim_multiplier": 1.3,
    "norm_eps": 1e-5, "vocab_size": -1,
}  # fmt: skip
LLAMA_3 = {
    "dim": 48, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "multiple_of": 4, "ffn_dim_multiplier": 1.5,
    "norm_eps": 1e-5, "vocab_size": 92, "rope_theta": 500000.0,
}  # fmt: skip
LLAMA_31 = LLAMA_3 | {"use_scaled_rope": True}
KINDS = {"Llama 1": LLAMA_1, "Llama 2": LLAMA_2, "Llama 3": LLAMA_3, "Llama 3.1": LLAMA_31}


def hidden_of(params: dict[str, Any]) -> int:
    """Meta's formula, with numbers worked out beside it: 2/3 of 4 dim, times, up to a multiple."""
    hidden = int(params.get("ffn_dim_multiplier", 1.0) * int(8 * params["dim"] / 3))
    return (hidden + params["multiple_of"] - 1) // params["multiple_of"] * params["multiple_of"]


def whole(params: dict[str, Any], vocabulary: int = 92, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under Meta's names, in one piece."""
    g = torch.Generator().manual_seed(seed)
    c, hidden = params["dim"], hidden_of(params)
    kv = c // params["n_heads"] * params.get("n_kv_heads", params["n_heads"])
    shapes = {"tok_embeddings": (vocabulary, c), "output": (vocabulary, c), "norm": (c,)}
    for n in range(params["n_layers"]):
        shapes |= {f"layers.{n}.attention.{w}": (rows, c) for w, rows in (("wq", c), ("wk", kv), ("wv", kv))}
        shapes |= {f"layers.{n}.attention.wo": (c, c), f"layers.{n}.feed_forward.w2": (c, hidden)}
        shapes |= {f"layers.{n}.feed_forward.{w}": (hidden, c) for w in ("w1", "w3")}
        shapes |= {f"layers.{n}.{norm}": (c,) for norm in ("attention_norm", "ffn_norm")}
    return {
        f"{name}.weight": (len(shape) == 1) + torch.randn(shape, generator=g) * 0.2
        for name, shape in shapes.items()
    }


def cut(
    weights: dict[str, torch.Tensor], parts: int, *, by_vocabulary: bool
) -> list[dict[str, torch.Tensor]]:
    """What each of `parts` processes would hold."""
    pieces: list[dict[str, torch.Tensor]] = [{} for _ in range(parts)]
    for name, tensor in weights.items():
        if tensor.dim() == 1:
            shares: tuple[torch.Tensor, ...] = (tensor,) * parts
        elif name.endswith((".wo.weight", ".w2.weight")) or (
            name == "tok_embeddings.weight" and not by_vocabulary
        ):
            shares = tensor.chunk(parts, 1)
        else:
            shares = tensor.chunk(parts, 0)
        for piece, share in zip(pieces, shares, strict=True):
            piece[name] = share.clone()
    return pieces


def write(folder: Path, params: dict[str, Any], pieces: list[Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params))
    for number, piece in enumerate(pieces):
        torch.save(piece, folder / f"consolidated.{number:02}.pth")
    return folder


def metas_own_logits(
    params: dict[str, Any], weights: dict[str, torch.Tensor], tokens_BT: torch.Tensor
) -> torch.Tensor:
    """The model as its paper describes it, with channels 2i and 2i + 1 as one complex number (no scaling)."""
    b, t = tokens_BT.shape
    h, d = params["n_heads"], params["dim"] // params["n_heads"]
    g = params.get("n_kv_heads", h)
    frequency = params.get("rope_theta", 10000.0) ** (-torch.arange(0, d, 2) / d)
    turn_T1D = torch.polar(torch.ones(t, d // 2), torch.outer(torch.arange(t).float(), frequency))[:, None]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), weights[name], params["norm_eps"])

    def turned(x: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn_T1D).flatten(-2)

    x = weights["tok_embeddings.weight"][tokens_BT]
    for n in range(params["n_layers"]):
        w = {name.split(".", 2)[2]: v for name, v in weights.items() if name.startswith(f"layers.{n}.")}
        y = norm(x, f"layers.{n}.attention_norm.weight")
        q, k, v = (
            (y @ w[f"attention.w{z}.weight"].T).view(b, t, heads, d)
            for z, heads in zip("qkv", (h, g, g), strict=True)
        )
        k, v = (z.repeat_interleave(h // g, 2).transpose(1, 2) for z in (turned(k), v))
        y = F.scaled_dot_product_attention(turned(q).transpose(1, 2), k, v, is_causal=True)
        x = x + y.transpose(1, 2).flatten(2) @ w["attention.wo.weight"].T
        y = norm(x, f"layers.{n}.ffn_norm.weight")
        gate, up = (y @ w[f"feed_forward.{z}.weight"].T for z in ("w1", "w3"))
        x = x + (F.silu(gate) * up) @ w["feed_forward.w2.weight"].T
    return norm(x, "norm.weight") @ weights["output.weight"].T


# ---- what is there
@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_runs_the_merged_weights_as_meta_defines_them(kind, parts, tmp_path):
    params = KINDS[kind]
    weights = whole(params)
    folder = write(tmp_path, params, cut(weights, parts, by_vocabulary=kind.startswith("Llama 3")))
    values, source = open_meta(folder)
    judge = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values)).eval()
    missing = judge.load_state_dict({name: source.read(name) for name in source.entries}, strict=True)
    assert not missing.missing_keys and not missing.unexpected_keys
    assert {n: tuple(t.shape) for n, t in judge.state_dict().items()} == {
        n: info.shape for n, info in source.entries.items()
    }
    if kind == "Llama 3.1":  # its scaling is transformers' business; see the values below
        return
    tokens_BT = torch.randint(92, (2, 19), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = judge(tokens_BT).logits
        assert theirs.std() > 0.3
        assert (theirs - metas_own_logits(params, weights, tokens_BT)).abs().max() < 1e-4
    source.close()


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_types_stay_and_are_converted_on_demand(dtype, parts, tmp_path):
    weights = {name: tensor.to(dtype) for name, tensor in whole(LLAMA_2).items()}
    _, source = open_meta(write(tmp_path, LLAMA_2, cut(weights, parts, by_vocabulary=False)))
    name = "model.layers.2.mlp.down_proj.weight"
    assert source.entries[name].dtype == dtype == source.read(name).dtype
    assert torch.equal(source.read(name), weights["layers.2.feed_forward.w2.weight"])
    wide = torch.empty(source.entries[name].shape)
    source.copy_to(name, wide)
    assert torch.equal(wide, weights["layers.2.feed_forward.w2.weight"].float())
    assert source.read("model.norm.weight").untyped_storage().nbytes() == 64 * dtype.itemsize


def test_many_threads_read_the_same(tmp_path):
    weights = whole(LLAMA_2)
    _, source = open_meta(write(tmp_path, LLAMA_2, cut(weights, 4, by_vocabulary=False)))
    wrong = []

    def work() -> None:
        for _ in range(30):
            if not torch.equal(source.read("model.embed_tokens.weight"), weights["tok_embeddings.weight"]):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("params", "wanted"),
    [
        (LLAMA_1, {"max_position_embeddings": 2048, "rope_theta": 1e4, "rope_scaling": None}),
        (LLAMA_2, {"max_position_embeddings": 4096, "num_key_value_heads": 4, "intermediate_size": 224}),
        (LLAMA_2 | {"rope_theta": 1e6}, {"max_position_embeddings": 16384, "rope_theta": 1e6}),
        (LLAMA_3, {"max_position_embeddings": 8192, "rope_theta": 5e5, "rope_scaling": None}),
        (LLAMA_31 | {"max_seq_len": 17, "max_batch_size": 3}, {"max_position_embeddings": 131072}),
    ],
)
def test_settings_in_other_words(params, wanted, tmp_path):
    values, _ = open_meta(write(tmp_path, params, cut(whole(params), 1, by_vocabulary=True)))
    assert {key: values[key] for key in wanted} == wanted
    assert values["vocab_size"] == 92 and values["tie_word_embeddings"] is False


@pytest.mark.parametrize(
    ("more", "factor"),
    [({}, 8.0), ({"rope_scaling_factor": 16}, 16.0), ({"dim": 2048, "n_layers": 16}, 32.0)],
)
def test_how_far_positions_are_stretched(more, factor, tmp_path):
    params = LLAMA_31 | more
    if "dim" in more:  # Llama 3.2's 1B in everything but the widths that cost memory
        params |= {"n_heads": 1024, "n_kv_heads": 1, "ffn_dim_multiplier": 0.001, "multiple_of": 1}
    weights = whole(params)
    values, _ = open_meta(write(tmp_path, params, [weights]))
    assert values["rope_scaling"]["factor"] == factor
    assert values["rope_scaling"]["original_max_position_embeddings"] == 8192


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("stored", ["twice", "once", "shared"])
def test_a_tied_head(stored, parts, tmp_path):
    weights = whole(LLAMA_3)
    weights["output.weight"] = weights["tok_embeddings.weight"].clone()
    pieces = cut(weights, parts, by_vocabulary=True)
    for piece in pieces:
        if stored == "once":
            del piece["output.weight"]
        elif stored == "shared":
            piece["output.weight"] = piece["tok_embeddings.weight"]
    values, source = open_meta(write(tmp_path, LLAMA_3, pieces))
    assert values["tie_word_embeddings"] is True and "lm_head.weight" not in source.entries
    pieces[-1].setdefault("output.weight", pieces[-1]["tok_embeddings.weight"].clone())
    pieces[-1]["output.weight"] = pieces[-1]["output.weight"].clone()
    pieces[-1]["output.weight"][-1, -1] += 1
    if stored == "once":
        for piece in pieces[:-1]:
            piece["output.weight"] = piece["tok_embeddings.weight"].clone()
    values, source = open_meta(write(tmp_path, LLAMA_3, pieces))
    assert values["tie_word_embeddings"] is False and "lm_head.weight" in source.entries


def test_leftovers_of_older_files(tmp_path):
    piece = OrderedDict(whole(LLAMA_1))
    piece["rope.freqs"] = torch.ones(4)
    piece["layers.1.attention.inner_attention.rope.freqs"] = torch.ones(4)
    piece._metadata = OrderedDict(version=1)  # type: ignore[attr-defined]  # what state_dict() leaves
    _, source = open_meta(write(tmp_path, LLAMA_1, [piece]))
    assert not [name for name in source.entries if "rope" in name]


def test_views_of_a_larger_storage(tmp_path):
    base = torch.arange(60.0).view(6, 10)
    torch.save({"a": base[1:4, 2:5], "b": base.T, "c": base[0, 0], "d": base[:0]}, tmp_path / "x.pth")
    file = StorageFile(tmp_path / "x.pth")
    assert torch.equal(file.read("a"), base[1:4, 2:5]) and file.read("a").is_contiguous()
    assert torch.equal(file.read("a", slice(1, 3)), base[2:4, 2:5])
    assert torch.equal(file.read("b"), base.T) and file.read("c") == 0 and file.read("d").shape == (0, 10)


# ---- what doesn't fit
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dim": 0}, "dim"),
        ({"dim": None}, "dim"),
        ({"dim": True}, "dim"),
        ({"dim": 2**40}, "dim"),
        ({"n_heads": 5}, "heads"),
        ({"n_kv_heads": 3}, "heads"),
        ({"n_layers": 4}, "lacks layers.3"),
        ({"n_layers": 1}, "doesn't have"),
        ({"n_layers": 10**6}, "n_layers"),
        ({"vocab_size": 93}, "tok_embeddings"),
        ({"vocab_size": -2}, "vocab_size"),
        ({"multiple_of": 64}, "feed_forward"),
        ({"multiple_of": 2.5}, "multiple_of"),
        ({"ffn_dim_multiplier": float("inf")}, "ffn_dim_multiplier"),
        ({"ffn_dim_multiplier": 10**400}, "ffn_dim_multiplier"),
        ({"norm_eps": float("nan")}, "norm_eps"),
        ({"norm_eps": "x"}, "norm_eps"),
        ({"rope_theta": -1}, "rope_theta"),
        ({"use_scaled_rope": "yes"}, "use_scaled_rope"),
        ({"n_kv_heads": 1}, "key-value heads"),
    ],
)
def test_settings_that_make_no_sense(change, words, tmp_path):
    folder = write(tmp_path, LLAMA_2, cut(whole(LLAMA_2), 2, by_vocabulary=False))
    (folder / "params.json").write_text(json.dumps(LLAMA_2 | change))
    with pytest.raises(ModelFileDamagedError, match=words):
        open_meta(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, '{"a": ' + "1" * 5000 + "}"])
def test_params_that_are_none(text, tmp_path):
    folder = write(tmp_path, LLAMA_1, [whole(LLAMA_1)])
    (folder / "params.json").write_text(text)
    with pytest.raises(ModelFileDamagedError):
        open_meta(folder)


@pytest.mark.parametrize(
    "key", ["moe_args", "vision_chunk_size", "quantization_args", "lora_args", "sliding_window", "hidden_dim"]
)
def test_other_architectures_are_refused(key, tmp_path):
    folder = write(tmp_path, LLAMA_1 | {key: 4}, [whole(LLAMA_1)])
    with pytest.raises(RefusedError, match=key):
        open_meta(folder)


@pytest.mark.parametrize("gone", ["params.json", "consolidated.00.pth", "consolidated.01.pth"])
def test_a_missing_file(gone, tmp_path):
    folder = write(tmp_path, LLAMA_2, cut(whole(LLAMA_2), 4, by_vocabulary=False))
    (folder / gone).unlink()
    with pytest.raises(ModelFileMissingError, match=gone):
        open_meta(folder)


def test_the_last_part_is_missing(tmp_path):
    folder = write(tmp_path, LLAMA_2, cut(whole(LLAMA_2), 4, by_vocabulary=False)[:2])
    with pytest.raises(ModelFileDamagedError, match="one of 2 parts"):
        open_meta(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.pop("layers.1.attention.wk.weight"),
        lambda p: p.update({"layers.1.attention.wk.weight": torch.zeros(15, 64)}),
        lambda p: p.update({"layers.1.attention.wk.weight": torch.zeros(64, 16)}),
        lambda p: p.update({"layers.1.attention.wk.weight": torch.zeros(16, 64, dtype=torch.int32)}),
        lambda p: p.update({"layers.1.attention.wk.weight": torch.zeros(16, 64).half()}),
        lambda p: p.update({"layers.1.attention.wk.bias": torch.zeros(16)}),
        lambda p: p.update({"norm.weight": torch.zeros(16)}),
        lambda p: p.update({"step": 3}),
        lambda p: p.update({"model": {"norm.weight": torch.zeros(16)}}),
        lambda p: p.update({7: torch.zeros(16)}),
    ],
)
def test_parts_that_don_t_fit(change, tmp_path):
    pieces = cut(whole(LLAMA_2), 2, by_vocabulary=False)
    change(pieces[1])
    with pytest.raises(ModelFileDamagedError):
        open_meta(write(tmp_path, LLAMA_2, pieces))


def test_the_old_format_is_refused_with_a_way_out(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(RefusedError, match=r"safetensors"):
        StorageFile(tmp_path / "x.pth")


# ---- pickles that would run code
def archive(path: Path, program: bytes, *, data: bytes = bytes(64), **more: Any) -> Path:
    """A file like torch.save's around any pickle."""
    with zipfile.ZipFile(path, "w", **more) as file:
        file.writestr("x/data.pkl", program)
        file.writestr("x/data/0", data)
    return path


class Calls:
    """Pickles as a call of `what(*arguments)`."""

    def __init__(self, what: Any, *arguments: Any, state: Any = None) -> None:
        self.what, self.arguments, self.state = what, arguments, state

    def __reduce__(self) -> tuple[Any, ...]:
        return (self.what, self.arguments) if self.state is None else (self.what, self.arguments, self.state)


CANARY = "canary"


def programs(canary: str) -> dict[str, bytes]:
    """Ways to run `touch canary`, each of which Python's own unpickler would take (or try)."""
    touch = f"touch {canary}"
    text = b"X" + struct.pack("<I", len(touch)) + touch.encode()
    short = b"\x8c" + bytes([len(touch)]) + touch.encode()
    quoted = f"S'{touch}'\n".encode()
    out = {
        f"{name}, version {version}": pickle.dumps({"norm.weight": thing}, protocol=version)
        for version in range(6)
        for name, thing in {
            "os.system": Calls(os.system, touch),
            "eval": Calls(eval, f"__import__('os').system('{touch}')"),
            "exec": Calls(exec, f"open('{canary}', 'w')"),
            "open": Calls(open, canary, "w"),
            "import": Calls(__import__, "antigravity"),
            "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
            "nested pickle": Calls(pickle.loads, pickle.dumps(Calls(os.system, touch))),
            "torch.load": Calls(torch.load, canary),
            "numpy": Calls(__import__, "numpy.testing._private.utils"),
            "dict with state": Calls(OrderedDict, state={"x": 1}),
            "ordered with arguments": Calls(OrderedDict, [("a", 1)]),
            "function": metas_own_logits,
        }.items()
    }
    return out | {
        "GLOBAL, REDUCE": b"\x80\x02cposix\nsystem\n" + text + b"\x85R.",
        "INST": b"(" + quoted + b"iposix\nsystem\n.",
        "OBJ": b"(cposix\nsystem\n" + text + b"o.",
        "NEWOBJ": b"\x80\x02cos\n_wrap_close\n" + text + b"\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04cos\n_wrap_close\n)}\x92.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + short + b"\x85R.",
        "STACK_GLOBAL out of the memo": b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94h\x00h\x01\x93"
        + short
        + b"\x85R.",
        "EXT1": b"\x80\x02\x82\x01" + text + b"\x85R.",
        "EXT2": b"\x80\x02\x83\x01\x00" + text + b"\x85R.",
        "EXT4": b"\x80\x02\x84\x01\x00\x00\x00" + text + b"\x85R.",
        "PERSID": b"\x80\x02Pposix system\n.",
        "version 4 frames": pickle.dumps({}, protocol=4),
        "dotted name": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n.",
        "name with a line feed": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\x00\n.",
        "old name": b"\x80\x02c__builtin__\neval\n" + text + b"\x85R.",
        "parameter": b"\x80\x02ctorch._utils\n_rebuild_parameter\n.",
        "class of torch": b"\x80\x02ctorch.nn.modules.linear\nLinear\n)R.",
        "a tensor's method": b"\x80\x02ctorch\nFloatStorage.from_file\n.",
        "storage called": b"\x80\x02ctorch\nFloatStorage\n)R.",
        "text called": b"\x80\x02" + text + b")R.",
        "ordered called with more": b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",
        "BUILD on a name": b"\x80\x02ccollections\nOrderedDict\n}b.",
        "BUILD with attributes": b"\x80\x02ccollections\nOrderedDict\n)R}X\x09\x00\x00\x00__class__K\x01sb.",
        "BUILD on a dictionary": b"\x80\x02}}X\x01\x00\x00\x00aK\x01sb.",
        "INT in text": b"\x80\x02I01\n.",
        "LONG in text": b"\x80\x02L" + b"9" * 100_000 + b"L\n.",
        "bytearray of 2^60": b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b".",
        "frozenset": b"\x80\x04(K\x01\x91.",
        "DUP": b"\x80\x02}2.",
        "list": b"\x80\x02].",
        "byte 255": b"\x80\x02\xff.",
    }


NONSENSE = {
    "empty": b"",
    "no STOP": b"\x80\x02}",
    "only STOP": b".",
    "two values": b"\x80\x02}}.",
    "more behind STOP": b"\x80\x02}.}",
    "a mark": b"\x80\x02(.",
    "pop of nothing": b"\x80\x02\x85.",
    "tuple without a mark": b"\x80\x02K\x01t.",
    "cut number": b"\x80\x02J\x01",
    "cut text": b"\x80\x02X\xff\xff\xff\xffab.",
    "bad text": b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
    "name without an end": b"\x80\x02c" + b"a" * 10_000,
    "memo of nothing": b"\x80\x02h\x05.",
    "memo of 2^32 - 1": b"\x80\x02j\xff\xff\xff\xff.",
    "SETITEM on a tuple": b"\x80\x02)X\x01\x00\x00\x00aK\x01s.",
    "odd SETITEMS": b"\x80\x02}(K\x01u.",
    "keys that are tuples": b"\x80\x02})K\x01s.",
    "a number": b"\x80\x02K\x01.",
    "persistent id of nothing": b"\x80\x02K\x01Q.",
    "persistent id of a mark": b"\x80\x02(Q.",
    "deep tuples": b"\x80\x02)" + b"\x85" * 300_000 + b".",
    "deep dictionaries": b"\x80\x02" + b"}X\x01\x00\x00\x00a" * 50_000 + b"}" + b"s" * 50_000 + b".",
    "a wide memo": b"\x80\x02}" + b"".join(b"r" + struct.pack("<I", n * 997) for n in range(50_000)),
    "many marks": b"\x80\x02" + b"(" * 300_000 + b".",
    "long number": b"\x80\x02\x8a\xff" + b"\xff" * 255 + b".",
}


def test_the_bad_pickles_are_bad(tmp_path, monkeypatch):
    """Python's own unpickler does run the first of them: the canary is a real one."""
    canary = tmp_path / CANARY
    pickle.loads(programs(str(canary))["GLOBAL, REDUCE"])
    assert canary.exists()


@pytest.mark.parametrize("name", programs(CANARY))
def test_a_pickle_that_would_run_code(name, tmp_path, monkeypatch):
    canary = tmp_path / CANARY
    imports: list[str] = []
    real = __import__

    def watched(*words: Any, **more: Any) -> Any:
        imports.append(words[0])
        return real(*words, **more)

    path = archive(tmp_path / "x.pth", programs(str(canary))[name])
    monkeypatch.setattr("builtins.__import__", watched)
    with pytest.raises(RefusedError) as caught:
        StorageFile(path)
    monkeypatch.undo()
    assert "the pickle" in caught.value.why and str(path) in caught.value.what and caught.value.exit_code == 8
    assert not canary.exists() and not {"antigravity", "posix", "os"} & set(imports)


@pytest.mark.parametrize("name", NONSENSE)
def test_a_pickle_that_makes_no_sense(name, tmp_path):
    with pytest.raises(ModelFileDamagedError) as caught:
        StorageFile(archive(tmp_path / "x.pth", NONSENSE[name]))
    assert len(str(caught.value)) < 1000


# Fields of a tensor: storage type, key, count; offset, shape, strides.
def tensor_program(
    kind: str = "FloatStorage",
    key: Any = "0",
    count: Any = 16,
    offset: Any = 0,
    shape: Any = (16,),
    strides: Any = (1,),
) -> bytes:
    def value(x: Any) -> bytes:
        if isinstance(x, tuple):
            return b"(" + b"".join(value(y) for y in x) + b"t"
        if isinstance(x, str):
            return b"X" + struct.pack("<I", len(x)) + x.encode()
        if isinstance(x, bool):
            return b"\x88" if x else b"\x89"
        if x is None:
            return b"N"
        size = (x.bit_length() + 8) // 8
        return b"\x8a" + bytes([size]) + x.to_bytes(size, "little", signed=True)

    storage = (
        b"(" + value("storage") + f"ctorch\n{kind}\n".encode() + value((key, "cpu", count))[1:-1] + b"tQ"
    )
    rest = value((offset, shape, strides, False))[1:-1] + b"ccollections\nOrderedDict\n)Rt"
    return b"\x80\x02}" + value("t") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"Rs."


def test_the_test_writes_tensors_that_are_read(tmp_path):
    data = torch.arange(16.0).numpy().tobytes()
    file = StorageFile(
        archive(tmp_path / "x.pth", tensor_program(shape=(2, 3), strides=(3, 1), offset=4), data=data)
    )
    assert torch.equal(file.read("t"), torch.arange(4.0, 10.0).view(2, 3))


@pytest.mark.parametrize(
    "lie",
    [
        {"count": 17},
        {"count": 15},
        {"count": 2**60},
        {"count": -16},
        {"count": True},
        {"count": None},
        {"key": "1"},
        {"key": "../x/data.pkl"},
        {"key": 0},
        {"kind": "DoubleStorage"},
        {"offset": 1},
        {"offset": -1},
        {"offset": 2**62},
        {"offset": 2**2000},
        {"offset": True},
        {"shape": (17,)},
        {"shape": (-16,)},
        {"shape": (2**62,)},
        {"shape": (2**40, 2**40), "strides": (0, 0)},
        {"shape": (2**20,), "strides": (0,)},
        {"shape": (16,), "strides": (2,)},
        {"shape": (16,), "strides": (-1,)},
        {"shape": (16, 1), "strides": (1,)},
        {"shape": 16},
        {"shape": (1,) * 100, "strides": (1,) * 100},
        {"shape": ((16,),), "strides": ((1,),)},
        {"shape": ("16",)},
    ],
)
def test_tensors_that_lie(lie, tmp_path):
    with pytest.raises(ModelFileDamagedError):
        StorageFile(archive(tmp_path / "x.pth", tensor_program(**lie)))


def test_few_numbers_shown_many_times(tmp_path):
    one = torch.zeros(1000)
    torch.save({str(n): one for n in range(50)}, tmp_path / "x.pth")
    with pytest.raises(ModelFileDamagedError, match="more numbers"):
        StorageFile(tmp_path / "x.pth")


# ---- archives that lie
def test_compressed_entries_are_refused_before_they_are_unpacked(tmp_path):
    path = archive(
        tmp_path / "x.pth", tensor_program(count=2**26), data=bytes(2**28), compression=zipfile.ZIP_DEFLATED
    )
    assert path.stat().st_size < 2**20
    with pytest.raises(ModelFileDamagedError, match="compressed"):
        StorageFile(path)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["x/data/0"], r"data\.pkl"),
        (["x/data.pkl", "y/data.pkl"], r"data\.pkl"),
        (["data.pkl"], r"data\.pkl"),
        (["x/data.pkl"], "missing or cut"),
        (["x/data.pkl", "../data/0"], "missing or cut"),
    ],
)
def test_entries_that_are_not_torchs(names, words, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as file:
        for name in names:
            file.writestr(name, tensor_program() if name.endswith("pkl") else bytes(64))
    with pytest.raises(ModelFileDamagedError, match=words):
        StorageFile(tmp_path / "x.pth")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_same_name_twice(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as file:
        for name in ("x/data.pkl", "x/data/0", "x/data/0"):
            file.writestr(name, tensor_program() if name.endswith("pkl") else bytes(64))
    with pytest.raises(ModelFileDamagedError):
        StorageFile(tmp_path / "x.pth")


def test_big_endian_numbers(tmp_path):
    path = archive(tmp_path / "x.pth", tensor_program())
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("x/byteorder", "big")
    with pytest.raises(ModelFileDamagedError, match="little-endian"):
        StorageFile(path)


def test_entries_that_overlap(tmp_path):
    path = archive(tmp_path / "x.pth", tensor_program())
    data = path.read_bytes()
    at = data.rindex(b"PK\x01\x02")  # the directory's entry of data/0: pretend that it lies at the pickle
    path.write_bytes(data[: at + 42] + bytes(4) + data[at + 46 :])
    with pytest.raises(ModelFileDamagedError):
        StorageFile(path)


@pytest.mark.parametrize("text", [b"", b"PK", b"\x93NUMPY", b"GGUF", b"<html>", bytes(1000)])
def test_no_archive_at_all(text, tmp_path):
    (tmp_path / "x.pth").write_bytes(text)
    with pytest.raises(ModelFileDamagedError):
        StorageFile(tmp_path / "x.pth")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("meta"), LLAMA_1, [whole(LLAMA_1, vocabulary=8)])
    return folder, (folder / "consolidated.00.pth").read_bytes()


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_random_damage_gives_typed_errors_or_a_model(saved, seed):
    folder, whole_file = saved
    chance = random.Random(seed)
    data = bytearray(whole_file)
    start = whole_file.index(b"\x80\x02")
    regions = [  # local header and pickle; the directory; anywhere
        (0, whole_file.index(b"PK\x03\x04", start)),
        (whole_file.index(b"PK\x01\x02"), len(data)),
        (0, len(data)),
    ]
    first, last = chance.choice(regions)
    kind = chance.randrange(3)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(first, last)
        if kind == 0:
            data[at] = chance.randrange(256)
        elif kind == 1:
            data[at] ^= 1 << chance.randrange(8)
        else:
            n = chance.randint(1, 32)
            data[at : at + n] = data[at : at + n] * chance.choice([0, 2])
            last = min(last, len(data))
    try:
        file = StorageFile(_in_memory(folder, bytes(data)))
        for name in file.tensors:
            file.read(name)
        file.close()
    except AylluError as error:
        assert str(error)


def _in_memory(folder: Path, data: bytes) -> Path:
    path = folder / "damaged.pth"
    path.write_bytes(data)
    return path


def test_a_file_that_is_cut_while_it_is_open(saved, tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(saved[1])
    file = StorageFile(path)
    os.truncate(path, 2000)
    with pytest.raises(ModelFileDamagedError, match="shorter"):
        for name in file.tensors:
            file.read(name)


def test_nothing_is_left_open(saved, tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for program in (NONSENSE["empty"], programs(CANARY)["GLOBAL, REDUCE"], tensor_program(key="9")):
        with pytest.raises(AylluError):
            StorageFile(archive(tmp_path / "x.pth", program))
    with pytest.raises(AylluError):
        open_meta(write(tmp_path / "m", LLAMA_2, cut(whole(LLAMA_2), 2, by_vocabulary=False)[:1] * 2 + [{}]))
    _, source = open_meta(saved[0])
    source.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_torch_reads_these_archives_too(tmp_path):
    """What the tests above damage is the real form."""
    data = torch.arange(16.0).numpy().tobytes()
    path = archive(tmp_path / "x.pth", tensor_program(), data=data)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("x/version", "3\n")
    loaded = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
    assert torch.equal(loaded["t"], torch.arange(16.0))
