"""Run in a process of its own, with Triton and without its interpreter: every kernel that a decode step would
launch is compiled for the GPU named (80, 90, ...), which needs none; prints a line for each kernel. `all`: in
every decoder and kind of weights.

Launching is replaced by compiling, so that the compiled forms are those of real calls."""

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float8_e4m3fn: "*fp8e4nv",
}
TARGET = GPUTarget("cuda", int(sys.argv[1]), 32)
seen: dict[str, object] = {}


def compile_instead(self: JITFunction, *args: object, grid: object, warmup: bool, **named: object) -> None:
    signature, constants, facts = {}, {}, {}
    given = dict(zip(self.arg_names, args, strict=False)) | named
    for index, param in enumerate(self.params):
        value = given[param.name]
        if param.is_constexpr:
            signature[param.name], constants[param.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[param.name], facts[index,] = TYPES[value.dtype], [["tt.divisibility", 16]]
        else:
            signature[param.name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, int) and value == 1:
                signature[param.name], constants[param.name] = "constexpr", 1
            elif isinstance(value, int) and value % 16 == 0:
                facts[index,] = [["tt.divisibility", 16]]
    key = f"{self.__name__} {signature} {constants} {facts}"
    if key not in seen:
        seen[key] = triton.compile(ASTSource(self, signature, constants, facts), target=TARGET)
        shared, size = seen[key].metadata.shared, len(seen[key].asm["cubin"])
        print(self.__name__, "shared", shared, "cubin", size, flush=True)


JITFunction.run = compile_instead

if __name__ == "__main__":
    from cuda_models import DECODERS, decode_some

    from ayllu.engine.executors.cuda import WEIGHTS

    whole = sys.argv[2:] == ["all"]
    decode_some(list(DECODERS) if whole else ["one kv head"], list(WEIGHTS) if whole else ["bfloat16"])
