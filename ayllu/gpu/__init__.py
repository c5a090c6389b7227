"""The decoder's work on a GPU in few kernels: Triton's counterpart of what native/ is for a CPU.

Tensors in, tensors out: what is cached where and who is served is the engine's (engine/executors/cuda.py).
Every kernel also runs on a CPU by Triton's interpreter (TRITON_INTERPRET=1), which is how it is tested where
there is no GPU, and compiles there for one. Only weight_only.py needs no Triton.
"""
