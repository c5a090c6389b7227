"""Archives like torch.save's around any pickle: programs that would run code, that make no sense, or that
describe a tensor as told."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from meta_folders import metas_own_logits


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
