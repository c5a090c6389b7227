"""The list of tensors inside a file of `torch.save`, read without running its pickle.

A pickle is a program for a small stack machine (Python's pickletools lists its words), and with REDUCE,
INST, OBJ, NEWOBJ or BUILD it calls whatever the writer of the file liked. Python's own unpickler, fenced
in by a list of names, has been broken more than once; here is no unpickler. `_Machine` knows the few
words that torch.save writes for a dictionary of tensors, imports nothing and calls nothing: a name stays
a `_Name`, and REDUCE on one of two names makes a plain record. Every other word or name is refused.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ayllu.errors import ModelFileDamagedError, RefusedError

_COPY_AGAIN = "copy the file again from where it was published"
_MOST_DIMENSIONS = 8

# The names that a pickle may say.
_REBUILD = "torch._utils._rebuild_tensor_v2"
_ORDERED = "collections.OrderedDict"
_STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}


# ---- what the pickle leaves behind
@dataclass(frozen=True)
class _Name:
    """A name from the allow-list: a mark, never the thing itself."""

    path: str


@dataclass(frozen=True)
class Storage:
    """A run of `count` numbers in the archive entry `data/key`."""

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def span(self) -> int:
        """Elements from the first to behind the last one that the view touches."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))


class _Table(dict[str, Any]):
    """What OrderedDict() and {} become."""


_MARK = object()


class _Machine:
    """The pickle's stack machine, with the words of a dictionary of tensors and no others.

    It has no recursion, and its memory is bounded by the length of the program: each word pushes at
    most one small thing.
    """

    def __init__(self, program: bytes) -> None:
        self.program, self.at = program, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The value on the stack at STOP. Raises RefusedError, ModelFileDamagedError."""
        while True:
            at = self.at
            word = self.take(1)
            if word == b".":
                if len(self.stack) != 1 or self.at != len(self.program):
                    raise _damaged("the pickle doesn't end where it should")
                return self.pop()
            act = _WORDS.get(word)
            if act is None:
                raise _refused(f"the pickle's byte {at} is the word {_word_name(word)}")
            act(self)

    # ---- the program and the stack
    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        piece = self.program[self.at : self.at + count]
        if len(piece) != count:
            raise _damaged("the pickle ends in the middle of a word")
        self.at += count
        return piece

    def number(self, size: int, *, signed: bool = False) -> int:
        """The next `size` bytes as a little-endian integer."""
        return int.from_bytes(self.take(size), "little", signed=signed)

    def line(self) -> str:
        """The text up to the next line end."""
        end = self.program.find(b"\n", self.at, self.at + 200)
        if end < 0:
            raise _damaged("the pickle has a name without an end")
        text = self.take(end - self.at)
        self.at += 1
        return text.decode("utf-8", "backslashreplace")

    def push(self, value: Any) -> None:
        """On top of the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """From the top of the stack; never a mark."""
        if not self.stack or self.stack[-1] is _MARK:
            raise _damaged("the pickle takes more from its stack than there is")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        """Everything above the topmost mark, which goes, too."""
        values = []
        while self.stack and self.stack[-1] is not _MARK:
            values.append(self.stack.pop())
        if not self.stack:
            raise _damaged("the pickle closes what it never opened")
        self.stack.pop()
        return values[::-1]

    # ---- words with more than one line
    def proto(self) -> None:
        """PROTO: torch.save writes version 2 unless told otherwise."""
        version = self.number(1)
        if version != 2:
            raise _refused(f"the pickle is of version {version}, not 2")

    def text(self) -> None:
        """BINUNICODE."""
        data = self.take(self.number(4))
        try:
            self.push(data.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise _damaged("the pickle holds a text that is not UTF-8") from error

    def name(self) -> None:
        """GLOBAL: where the danger of pickles begins, and ends here."""
        module, thing = self.line(), self.line()
        path = f"{module}.{thing}"
        if path not in (_REBUILD, _ORDERED) and path not in _STORAGES:
            raise _refused(f"the pickle names {path!r}")
        self.push(_Name(path))

    def get(self, index: int) -> None:
        """BINGET, LONG_BINGET."""
        if index not in self.memo:
            raise _damaged("the pickle recalls what it never stored")
        self.push(self.memo[index])

    def put(self, index: int) -> None:
        """BINPUT, LONG_BINPUT: remember the top of the stack, which stays."""
        value = self.pop()
        self.memo[index] = value
        self.push(value)

    def tuple_of(self, count: int) -> None:
        """TUPLE1, TUPLE2, TUPLE3."""
        values = [self.pop() for _ in range(count)]
        self.push(tuple(values[::-1]))

    def set_items(self, pairs: list[Any]) -> None:
        """SETITEM, SETITEMS."""
        table = self.pop()
        if type(table) is not _Table or len(pairs) % 2:
            raise _damaged("the pickle fills something that is no dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if type(key) is not str:
                raise _damaged("the pickle has a dictionary whose keys are no names")
            table[key] = value
        self.push(table)

    def set_item(self) -> None:
        """SETITEM: one key, one value."""
        value = self.pop()
        self.set_items([self.pop(), value])

    def persistent(self) -> None:
        """BINPERSID: torch.save's reference to a storage, ('storage', type, key, device, count)."""
        what = self.pop()
        if type(what) is not tuple or len(what) != 5 or what[0] != "storage":
            raise _damaged("the pickle refers to something that is no storage")
        _, kind, key, device, count = what
        if type(kind) is not _Name or kind.path not in _STORAGES:
            raise _damaged("the pickle has a storage of no type")
        if type(key) is not str or type(device) is not str or type(count) is not int or count < 0:
            raise _damaged("the pickle has a storage without key or size")
        self.push(Storage(key, _STORAGES[kind.path], count))

    def reduce(self) -> None:
        """REDUCE: elsewhere a call; here one of two records is made."""
        arguments, callee = self.pop(), self.pop()
        path = callee.path if type(callee) is _Name else None
        if path == _ORDERED and arguments == ():
            self.push(_Table())
        elif path == _REBUILD:
            self.push(_tensor(arguments))
        else:
            raise _refused(f"the pickle calls {path or type(callee).__name__}")

    def build(self) -> None:
        """BUILD: elsewhere sets attributes; a state_dict's `_metadata` comes this way and is dropped."""
        state, thing = self.pop(), self.pop()
        if type(thing) is not _Table or type(state) is not _Table or state.keys() - {"_metadata"}:
            raise _refused("the pickle sets attributes of an object (BUILD)")
        self.push(thing)


_WORDS: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": _Machine.proto,
    b"(": lambda m: m.push(_MARK),
    b"}": lambda m: m.push(_Table()),
    b")": lambda m: m.push(()),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"J": lambda m: m.push(m.number(4, signed=True)),
    b"K": lambda m: m.push(m.number(1)),
    b"M": lambda m: m.push(m.number(2)),
    b"\x8a": lambda m: m.push(m.number(m.number(1), signed=True)),
    b"X": _Machine.text,
    b"c": _Machine.name,
    b"h": lambda m: m.get(m.number(1)),
    b"j": lambda m: m.get(m.number(4)),
    b"q": lambda m: m.put(m.number(1)),
    b"r": lambda m: m.put(m.number(4)),
    b"t": lambda m: m.push(tuple(m.pop_to_mark())),
    b"\x85": lambda m: m.tuple_of(1),
    b"\x86": lambda m: m.tuple_of(2),
    b"\x87": lambda m: m.tuple_of(3),
    b"s": _Machine.set_item,
    b"u": lambda m: m.set_items(m.pop_to_mark()),
    b"Q": _Machine.persistent,
    b"R": _Machine.reduce,
    b"b": _Machine.build,
}


def tensors_in(program: bytes) -> dict[str, StoredTensor]:
    """The tensors that the pickle `program` lists, by name.

    Raises RefusedError for a word or name that a list of tensors has no need for, ModelFileDamagedError
    for a program that makes no sense.
    """
    found = _Machine(program).run()
    if type(found) is not _Table:
        raise _damaged("it holds no dictionary")
    for name, value in found.items():
        if type(value) is not StoredTensor:
            raise ModelFileDamagedError(
                f"{name[:80]!r} is no tensor",
                why="a file of weights alone is wanted, without optimizer or settings",
            )
    return dict(found)


def _tensor(arguments: Any) -> StoredTensor:
    """The record of `_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)`."""
    if type(arguments) is not tuple or len(arguments) not in (6, 7) or type(arguments[0]) is not Storage:
        raise _damaged("the pickle has a tensor without a storage")
    storage, offset, shape, strides = arguments[:4]
    whole = type(offset) is int and type(shape) is tuple and type(strides) is tuple
    if not whole or len(shape) != len(strides) or len(shape) > _MOST_DIMENSIONS:
        raise _damaged("the pickle has a tensor without a shape")
    if any(type(n) is not int or not 0 <= n < 2**48 for n in (offset, *shape, *strides)):
        raise _damaged("the pickle has a tensor of an impossible shape")
    tensor = StoredTensor(storage, offset, shape, strides)
    if offset + tensor.span > storage.count:
        raise _damaged(f"a tensor {shape} reaches beyond its storage of {storage.count} numbers")
    if math.prod(shape) > tensor.span:  # a stride of 0 makes terabytes out of nothing
        raise _damaged(f"a tensor {shape} shows the same numbers more than once")
    return tensor


def _word_name(word: bytes) -> str:
    names = {code.code.encode("latin-1"): code.name for code in pickletools.opcodes}
    return names.get(word, f"0x{word.hex()}")


def _damaged(why: str) -> ModelFileDamagedError:
    return ModelFileDamagedError("the file's list of tensors is damaged", why=why, fix=_COPY_AGAIN)


def _refused(why: str) -> RefusedError:
    return RefusedError(
        "the file would run code, which is never done here",
        why=f"{why}, which a list of tensors has no need for",
        fix="don't use files from a source you don't trust; ask for the same weights as .safetensors",
    )
