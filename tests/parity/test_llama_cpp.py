"""Our GGUF files in llama.cpp itself: the same logits and the same 64 greedy tokens, the same token ids.

Needs the extra `bench` (llama-cpp-python, built from source). llama.cpp rounds activations to the kind of the
weights before it multiplies (half precision, or 8 bits in blocks of 32), so that its logits are near ours and
not equal; the models here have one clear winner at every step, as trained ones do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ayllu.model.decoder import Decoder
from ayllu.model.families import family_of
from ayllu.model.formats.gguf import write_gguf
from ayllu.model.weights import load_model
from ayllu.text.gguf_vocabulary import gguf_values
from ayllu.text.tokenizer import Tokenizer, train_tokenizer

llama_cpp = pytest.importorskip("llama_cpp", reason="llama_cpp is not installed: pip install '.[bench]'")

VOCABULARY, PROMPT, CONTINUED = 384, 24, 64
SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 512,
    "hidden_act": "silu",
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
}
SHORT = {"original_max_position_embeddings": 32}  # the text is longer than this
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0} | SHORT
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"]},
    "llama3": {"architectures": ["LlamaForCausalLM"], "rope_scaling": LLAMA3},
    "yarn": {
        "architectures": ["LlamaForCausalLM"],
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0} | SHORT,
    },
    "linear": {
        "architectures": ["LlamaForCausalLM"],
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
    "mistral": {"architectures": ["MistralForCausalLM"], "head_dim": 32, "sliding_window": 128},
    "mixtral": {"architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 1},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 96},
    "qwen3, tied": {"architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": True},
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "norm_topk_prob": True,
    },
}
SIGNAL = 0.75  # of the one continuation, against the noise of the head
# How far logits may be off, as a share of their spread: what rounding the activations costs.
NEAR = {"F16": 0.02, "BF16": 0.06, "Q8_0": 0.08, "Q4_0": 0.08}
TEXTS = [
    "What is 417 + 385? It's 802; we'll see, I'd say 'so'.",
    "Die Straße war naß, und wir gingen über die Brücke.\n\nZweiter Absatz: „Ja!“",
    "ఆవు పాలు ఇస్తుంది. కుక్క మొరుగుతుంది, పిల్లి పరుగెత్తింది!",
    "def f(x):\n    return x[0] ** 2  # 🦙 👩‍👩‍👧\n\n\n\tprint('a-b', \"c\")\n",
    "  two spaces,\ttab <|user|> and 1234567890 <|end|>",
]


def clear_model(name: str) -> Decoder:
    """Random weights that half precision holds exactly. The head of a token points to the embedding of the
    token before it in a random order, so that one continuation stands out; attention and MLP have a good
    part in the states, and their mistakes show in the logits."""
    values = SIZES | MODELS[name]
    module = family_of(values["architectures"][0])
    assert module is not None
    config = module.config_from_hf(values)
    generator = torch.Generator().manual_seed(3)
    model = Decoder(config).eval().requires_grad_(False)
    for key, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.dim() == 1:
            fresh = (0.0 if key.endswith("bias") else 1.0) + 0.1 * noise
        else:
            fresh = noise * (1.0 if "embedding" in key else weight.shape[-1] ** -0.5)
        weight.copy_(fresh.half())
    if model.head is not None:
        order = torch.randperm(config.vocab_size, generator=generator)
        noise = torch.randn(model.head.weight.shape, generator=generator)
        model.head.weight.copy_((0.1 * (SIGNAL * model.embedding.weight[order] + noise)).half())
    return model


@dataclass
class Theirs:
    """llama.cpp with one file; float32 cache, one thread."""

    inner: Any

    def ids(self, text: str) -> list[int]:
        return self.inner.tokenize(text.encode(), add_bos=False, special=False)

    def continued(self, prompt: list[int], count: int) -> tuple[list[int], np.ndarray]:
        """Greedy tokens, and the logits of every position."""
        self.inner.reset()
        self.inner.eval(prompt)
        out: list[int] = []
        for _ in range(count):
            out.append(int(self.inner.scores[self.inner.n_tokens - 1].argmax()))
            self.inner.eval(out[-1:])
        return out, self.inner.scores[: self.inner.n_tokens].copy()


@pytest.fixture(scope="module", autouse=True)
def plain_kernels() -> Iterator[None]:
    """llama.cpp without repacking weights: its AMX kernels crash on some virtual machines."""
    defaults = llama_cpp.llama_model_default_params

    def without_repacking() -> Any:
        params = defaults()
        params.use_extra_bufts = False
        return params

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", without_repacking)
        yield


def opened(path: Path) -> Theirs:
    return Theirs(
        llama_cpp.Llama(
            str(path), n_ctx=128, n_threads=1, n_threads_batch=1, n_batch=128, logits_all=True, verbose=False,
            type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, use_mmap=False,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Our tokenizer, a little smaller than the models' vocabulary."""
    out = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(iter(TEXTS * 3), VOCABULARY - 4).save(out)
    yield out


def greedy(model: Decoder, prompt: list[int], count: int) -> tuple[list[int], np.ndarray]:
    out: list[int] = []
    with torch.no_grad():
        for _ in range(count):
            out.append(int(model(torch.tensor([prompt + out]))[0, -1].argmax()))
        return out, model(torch.tensor([prompt + out]))[0].numpy()


@pytest.mark.parametrize("kind", NEAR)
@pytest.mark.parametrize("name", MODELS)
def test_the_same_continuation(tmp_path: Path, folder: Path, name: str, kind: str) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(clear_model(name), path, kind=kind, vocabulary=gguf_values(folder, VOCABULARY))
    model = load_model(path)  # F16 and BF16 lose nothing here; packed kinds are compared as they are packed
    prompt = torch.randint(16, VOCABULARY - 4, (PROMPT,), generator=torch.Generator().manual_seed(5)).tolist()
    tokens, logits = greedy(model, prompt, CONTINUED)
    top = np.sort(logits, axis=-1)
    gap = ((top[:, -1] - top[:, -2]) / logits.std(-1))[PROMPT - 1 : -1]
    assert gap.min() > 2 * NEAR[kind], "two tokens are nearly tied"
    said, theirs = opened(path).continued(prompt, CONTINUED)
    assert said == tokens
    assert len(set(tokens)) > 8 or model.head is None  # a tied head says its own token again
    difference = np.abs(theirs - logits).max(-1) / logits.std(-1)
    # Rounded activations may send a token to another expert where the router is nearly undecided.
    experts = "num_experts" in MODELS[name] and kind in ("Q8_0", "Q4_0")
    assert (np.quantile(difference, 0.9) if experts else difference.max()) < NEAR[kind]


def test_f16_is_the_model_itself(tmp_path: Path, folder: Path) -> None:
    model = clear_model("llama3")
    write_gguf(model, tmp_path / "a.gguf", kind="F16")
    for name, weight in load_model(tmp_path / "a.gguf").state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_our_tokenizers_ids(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(clear_model("qwen3"), path, kind="F16", vocabulary=gguf_values(folder, VOCABULARY))
    theirs, ours = opened(path), Tokenizer.load(folder)
    for text in TEXTS:
        assert theirs.ids(text) == ours.encode(text), text
    assert theirs.inner.token_bos() == ours.control["<|bos|>"]
    assert theirs.inner.token_eos() == ours.control["<|end|>"]


def test_where_our_pattern_differs(tmp_path: Path, folder: Path) -> None:
    """Known and rare: a word right behind an apostrophe that begins like an English ending. Text is the same
    in both, the ids are not. When llama.cpp gets our pattern, this test fails and the difference is gone."""
    path = tmp_path / "a.gguf"
    write_gguf(clear_model("qwen3"), path, kind="F16", vocabulary=gguf_values(folder, VOCABULARY))
    theirs, ours = opened(path), Tokenizer.load(folder)
    text = "('sagen')"
    assert theirs.inner.detokenize(theirs.ids(text)).decode() == ours.decode(ours.encode(text)) == text


def test_stories260k(tmp_path: Path) -> None:
    """A model that others trained, with its SentencePiece vocabulary."""
    source = Path(__file__).parent.parent / "fixtures" / "stories260K"
    path = tmp_path / "s.gguf"
    write_gguf(load_model(source), path, kind="F16", vocabulary=gguf_values(source, 512))
    theirs, ours = opened(path), Tokenizer.load(source)
    text = "Once upon a time, there was a little girl named Lily. ßä 🦙"
    assert theirs.ids(text) == ours.encode(text)
    prompt = [1, *ours.encode("Once upon a time")]
    tokens, logits = greedy(load_model(path), prompt, CONTINUED)
    said, scores = theirs.continued(prompt, CONTINUED)
    assert said == tokens
    assert np.abs(scores - logits).max() < 0.05
    assert "there was a little" in ours.decode(tokens)
