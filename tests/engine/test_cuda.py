"""The cuda executor against the torch decoder. Without a GPU its kernels run in Triton's interpreter, on the
CPU and in full; what only a GPU has, graphs, is skipped there by name."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from cuda_models import DECODERS, DEVICE, GPU  # first: it chooses the interpreter before Triton is imported
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="Triton, which the kernels are written in, isn't installed")
from test_native_executor import CONFIGS, batch, random_model

from ayllu.engine.engine import Engine
from ayllu.engine.executors import cuda, make_executor
from ayllu.engine.executors.cuda import CudaExecutor
from ayllu.engine.executors.cuda_graphs import SIZES, Graphs
from ayllu.engine.executors.torch import TorchExecutor
from ayllu.errors import AylluWarning, RequestError
from ayllu.gpu import attention, products, rows
from ayllu.gpu.weight_only import WeightOnly
from ayllu.model.config import ModelConfig, dense_layer
from ayllu.model.moe import MoE

on_a_gpu = pytest.mark.skipif(not GPU, reason="CUDA graphs need a CUDA device, and there is none here")
SMALL = ModelConfig(48, 90, (dense_layer(4, 2, 12, 70),) * 2, 200)
TABLES = np.array([[3, 1, 8, 2, 7], [4, 10, 11, 12, 13], [5, 6, 0, 14, 9]], np.int32)


def on_device(config: ModelConfig):
    return random_model(config).to(DEVICE)


def decoded(executor, tokens_ST: torch.Tensor, first: tuple[int, ...] = (70, 33, 1), steps: int = 2):
    """Prompts of `first` tokens in one step, then decode steps, all sequences together; the logits of the
    latter (steps, sequences, vocabulary)."""
    executor.reserve(15)
    executor.step(batch([(r, 0, tokens_ST[r, :n].tolist()) for r, n in enumerate(first)], TABLES))
    out = []
    for ahead in range(steps):
        pieces = [(r, n + ahead, [int(tokens_ST[r, n + ahead])]) for r, n in enumerate(first)]
        out.append(executor.step(batch(pieces, TABLES)).cpu())
    return torch.stack(out)


def wanted(model, tokens_ST: torch.Tensor, first: tuple[int, ...] = (70, 33, 1), steps: int = 2):
    """The same by the decoder."""
    logits_STV = model(tokens_ST.to(DEVICE)).float().cpu()
    return torch.stack(
        [torch.stack([logits_STV[r, n + i] for r, n in enumerate(first)]) for i in range(steps)]
    )


def tokens_of(config: ModelConfig, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, config.vocab_size, (3, 76), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """The interpreter runs programs one after the other: as many as a small chip would want."""
    if not GPU:
        monkeypatch.setattr(attention, "PROGRAMS", 16)
        monkeypatch.setattr(products, "ROWS", (64, 64))


# ---- the executor
@pytest.mark.parametrize("name", DECODERS)
def test_float32_equals_the_decoder(name):
    model, tokens_ST = on_device(DECODERS[name]), tokens_of(DECODERS[name])
    executor = CudaExecutor(model, "float32")
    got, want = decoded(executor, tokens_ST, steps=1), wanted(model, tokens_ST, steps=1)
    assert executor._proven
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()
    alone = executor.step(batch([(0, 70, [int(tokens_ST[0, 70])])], TABLES)).cpu()
    assert (alone - want[0, 0]).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize(
    ("weights", "name"), [("int8", "one kv head"), ("fp8", "one kv head"), ("int4", "experts")]
)
def test_few_bits_equal_a_decoder_with_those_weights(weights, name):
    model, tokens_ST = on_device(CONFIGS[name]), tokens_of(CONFIGS[name])
    executor = CudaExecutor(model, weights)
    # Compared in float32, so that rounding can't choose other experts.
    executor.dtype = torch.float32
    for layer in executor.layers:
        layer.k_NBGD, layer.v_NBGE = layer.k_NBGD.float(), layer.v_NBGE.float()
    executor.model.embedding.float()
    for few in executor.model.modules():
        if isinstance(few, WeightOnly):
            few.dtype = torch.float32
    own = dict(executor.model.named_modules())
    named = dict(model.named_modules())
    with torch.no_grad():
        for where, few in own.items():
            if isinstance(few, WeightOnly) and where != "head":
                moe = named.get(where.rpartition(".")[0])
                same = getattr(moe, where.rpartition(".")[2].removesuffix("_few"))
                (same if isinstance(moe, MoE) and where.endswith("_few") else same.weight).copy_(few.weight)
        model.embedding.weight.copy_(executor.model.embedding.weight)
        if model.head is None:
            model.head = executor.model.head
        else:
            model.head.weight.copy_(executor.model.head.weight)
    got, want = decoded(executor, tokens_ST, steps=1), wanted(model, tokens_ST, steps=1)
    assert executor._proven
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize(("weights", "most"), [("bfloat16", 0.03), ("fp8", 0.15)])
def test_sixteen_bits_are_close_to_the_torch_executor(weights, most):
    model, tokens_ST = on_device(SMALL), tokens_of(SMALL)
    want = decoded(TorchExecutor(model, torch.float32), tokens_ST, steps=1)
    got = decoded(CudaExecutor(model, weights), tokens_ST, steps=1)
    assert (got - want).norm() <= most * want.norm()


@pytest.mark.parametrize("weights", ["bfloat16", "int4"])
def test_refresh_follows_a_live_model(weights):
    config = CONFIGS["experts"]
    model, tokens_ST = on_device(config), tokens_of(config)
    executor = CudaExecutor(model, weights)
    decoded(executor, tokens_ST, steps=1)
    old = executor.fingerprint
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.05)
    executor.refresh()
    assert executor.fingerprint != old
    fresh = CudaExecutor(model, weights)
    assert executor.fingerprint == fresh.fingerprint
    assert torch.equal(decoded(executor, tokens_ST, steps=1), decoded(fresh, tokens_ST, steps=1))


def test_blocks_travel():
    model, tokens = on_device(SMALL), list(range(20))
    executor, other = CudaExecutor(model, "bfloat16"), CudaExecutor(model, "bfloat16")
    executor.reserve(4)
    other.reserve(6)
    table = np.array([[1, 2]], np.int32)
    executor.step(batch([(0, 0, tokens)], table))
    want = executor.step(batch([(0, 20, [7])], table))
    other.import_block(5, executor.export_block(1))
    other.import_block(3, executor.export_block(2))
    other.copy_block(5, 0)
    assert torch.equal(other.step(batch([(0, 20, [7])], np.array([[0, 3]], np.int32))), want)
    assert executor.export_block(1).numel() == executor.block_bytes


def test_the_engine_writes_the_same_text_by_both():
    model = on_device(SMALL)
    prompts = [[5, 6, 7], list(range(40)), [1]]
    texts = []
    for executor in (CudaExecutor(model, "float32"), TorchExecutor(model, torch.float32)):
        with Engine(model, executor=executor, device=DEVICE, cache_blocks=40) as engine:
            done = engine.generate(prompts, max_tokens=3, temperature=0, logprobs=True)
            texts.append([one.token_ids for one in done])
    assert texts[0] == texts[1]


def test_a_padded_plan_gives_the_same():
    model = on_device(SMALL)
    executor = CudaExecutor(model, "float32")
    executor.reserve(3)
    plan = torch.tensor([[7, 0, 1], [0, -1, 0], [9, 0, 2]], dtype=torch.int32, device=DEVICE)
    with torch.inference_mode():
        padded, alone = executor._decode(plan), executor._decode(plan[::2].contiguous())
    assert torch.allclose(padded[::2], alone, atol=1e-5)
    assert not executor.layers[0].k_NBGD[0].any()


class _Asks(TorchDispatchMode):
    """Collects the operations that make the host wait, or whose result's size depends on numbers."""

    asking = ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "_unique2", "equal")

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.asking:
            self.found.add(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", DECODERS)
def test_a_step_asks_the_device_for_nothing(name, monkeypatch):
    executor = CudaExecutor(on_device(DECODERS[name]), "bfloat16")
    executor.reserve(2)
    monkeypatch.setattr(products, "product", _shaped_like_a_product)  # the interpreter itself does ask
    monkeypatch.setattr(attention, "attend", lambda q, *_, **__: q)
    monkeypatch.setattr(rows, "add_norm", lambda x, *_: x)
    monkeypatch.setattr(rows, "gate", lambda x: x[:, : x.shape[1] // 2])
    monkeypatch.setattr(
        rows, "place", lambda qkv, k, *_, heads, **__: qkv[:, : heads * k.shape[3]].unflatten(1, (heads, -1))
    )
    plan = torch.tensor([[7, 0, 0], [9, 0, 1]], dtype=torch.int32, device=DEVICE)
    with torch.inference_mode(), _Asks() as asks:
        executor._decode(plan)
    assert not asks.found


def _shaped_like_a_product(x, data, scale, bias, count, *, out, which_M=None, repeats=1):
    return x.new_zeros(len(x) if which_M is None else len(which_M), count, dtype=out)


# ---- what is chosen, what isn't there
@on_a_gpu
def test_a_gpu_gets_this_executor():
    model = on_device(SMALL)
    assert make_executor(model, "auto", "cuda").weights == "bfloat16"
    assert make_executor(model, "int4", "cuda:0").name.endswith("int4, graphs of Triton kernels")
    with pytest.raises(RequestError, match="cache"):
        make_executor(model, "bfloat16", "cuda", cache="int8")
    with pytest.raises(RequestError, match="lies on cuda"):
        make_executor(model, "auto", "cpu")  # native code would read its addresses


def test_weights_and_places_that_are_none():
    with pytest.raises(RequestError, match="fp8"):
        make_executor(random_model(SMALL), "fp8", "cpu")
    with pytest.raises(RequestError, match="int3"):
        CudaExecutor(on_device(SMALL), "int3")
    with pytest.raises(RequestError, match="lies on cpu, and the engine is to compute on cuda"):
        make_executor(random_model(SMALL), "auto", "cuda")


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_a_prompt_beside_others_leaves_them_their_kernels(weights, monkeypatch):
    """One step: a text that goes on, a prompt's stretch, a second text that goes on."""
    model, tokens_ST = on_device(SMALL), tokens_of(SMALL)
    executor, alone = CudaExecutor(model, weights), CudaExecutor(model, weights)
    seen = []
    run = executor.graphs.run
    monkeypatch.setattr(executor.graphs, "run", lambda *given: seen.append(len(given[0])) or run(*given))
    for one in (executor, alone):
        one.reserve(15)
        one.step(batch([(0, 0, tokens_ST[0, :70].tolist()), (2, 0, tokens_ST[2, :9].tolist())], TABLES))
    pieces = [(0, 70, [5]), (1, 0, tokens_ST[1, :33].tolist()), (2, 9, [6])]
    mixed = batch(pieces, TABLES)
    every = np.arange(len(mixed.tokens_T), dtype=np.int32)
    for wanted_L in (every, every[:-1], every[1:2], every[-1:]):
        got = executor.step(replace(mixed, wanted_L=wanted_L)).cpu()
        apart = torch.cat([alone.step(batch([piece], TABLES)).cpu() for piece in pieces])
        assert got.shape == (len(wanted_L), SMALL.vocab_size)
        limit = 1e-4 if weights == "float32" else 0.05 * apart.abs().max()
        assert (got - apart[wanted_L.tolist()]).abs().max() <= limit
    assert seen == [2] * 4, "both texts went by the kernels, together"


def test_weights_and_cache_are_free_at_once():
    """Without waiting for the cyclic collector: the next engine wants the memory."""
    gc.collect()
    gc.disable()
    try:
        executor = CudaExecutor(on_device(SMALL), "float32")
        executor.reserve(4)
        decoded(executor, tokens_of(SMALL), steps=1)
        gone = weakref.ref(executor)
        del executor
        assert gone() is None
    finally:
        gc.enable()


def test_other_decoders_run_without_kernels():
    config = ModelConfig(48, 64, (dense_layer(4, 2, 16, 72),), 100, logit_softcap=30.0)
    model, tokens_ST = on_device(config), tokens_of(config)
    executor = CudaExecutor(model, "float32")
    assert "cap on logits" in executor.name
    assert torch.allclose(decoded(executor, tokens_ST), wanted(model, tokens_ST), atol=1e-4)


def test_without_triton_torch_does_it(monkeypatch):
    monkeypatch.setattr(cuda, "_NO_TRITON", "Triton isn't installed (here)")
    model, tokens_ST = on_device(SMALL), tokens_of(SMALL)
    for weights in ("float32", "int4"):
        with pytest.warns(AylluWarning, match="Triton isn't installed"):
            executor = CudaExecutor(model, weights)
        want = wanted(executor.model, tokens_ST)
        close = 1e-4 if weights == "float32" else 0.05 * want.abs().max()
        assert (decoded(executor, tokens_ST) - want).abs().max() <= close
        assert "Triton isn't installed" in executor.name


def test_where_kernels_fail_at_first_torch_does_it(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no C compiler")

    model, tokens_ST = on_device(SMALL), tokens_of(SMALL)
    executor = CudaExecutor(model, "float32")
    monkeypatch.setattr(attention, "attend", fail)
    with pytest.warns(AylluWarning, match="no C compiler"):
        got = decoded(executor, tokens_ST)
    assert torch.allclose(got, wanted(model, tokens_ST), atol=1e-4)
    assert "no C compiler" in executor.without_kernels


def test_a_failure_later_is_not_hidden(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("lost")

    model, tokens_ST = on_device(SMALL), tokens_of(SMALL)
    executor = CudaExecutor(model, "float32")
    decoded(executor, tokens_ST, steps=1)
    executor.graphs.forget()
    monkeypatch.setattr(attention, "attend", fail)
    with pytest.raises(RuntimeError, match="lost"):
        executor.step(batch([(0, 71, [1])], TABLES))


# ---- graphs
@on_a_gpu
def test_graphs_repeat_what_the_kernels_do():
    model, tokens_ST = on_device(SMALL), tokens_of(SMALL)
    executor = CudaExecutor(model, "bfloat16")
    by_graphs = decoded(executor, tokens_ST, steps=4)
    assert executor.graphs.usable and executor.graphs._recorded
    without = CudaExecutor(model, "bfloat16")
    without.graphs.usable = False
    assert torch.allclose(by_graphs, decoded(without, tokens_ST, steps=4), atol=1e-2)


@on_a_gpu
def test_a_grown_cache_gets_new_graphs():
    model, tokens_ST = on_device(SMALL), tokens_of(SMALL)
    executor = CudaExecutor(model, "float32")
    decoded(executor, tokens_ST, steps=1)
    executor.reserve(500)
    assert not executor.graphs._recorded
    again = decoded(executor, tokens_ST)
    assert (again - wanted(model, tokens_ST)).abs().max() <= 1e-4


@on_a_gpu
def test_graphs_see_refreshed_weights():
    model, tokens_ST = on_device(SMALL), tokens_of(SMALL)
    executor = CudaExecutor(model, "bfloat16")
    decoded(executor, tokens_ST)
    recorded = dict(executor.graphs._recorded)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    executor.refresh()
    assert executor.graphs._recorded == recorded  # the same memory, the same graphs
    assert torch.equal(decoded(executor, tokens_ST), decoded(CudaExecutor(model, "bfloat16"), tokens_ST))


@on_a_gpu
def test_the_largest_number_of_sequences():
    graphs = Graphs(lambda plan: plan[:, 1:2].float(), 1, torch.device(DEVICE))
    positions = np.arange(SIZES[-1] - 3, dtype=np.int32)
    got = graphs.run(positions, positions, positions[:, None])
    assert got[:, 0].tolist() == positions.tolist()
