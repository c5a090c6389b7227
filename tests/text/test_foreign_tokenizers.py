"""Vocabularies of other models: the same ids as the libraries they were made with.

The judges are sentencepiece and tiktoken themselves, and transformers for tokenizer.json.
"""

from __future__ import annotations

import base64
import io
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiktoken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ayllu.errors import ModelFileDamagedError, ModelFileMissingError
from ayllu.text.tokenizer import StreamDecoder, Tokenizer, train_tokenizer
from ayllu.text.vocabularies import sentencepiece as our_sentencepiece
from ayllu.text.vocabularies.bytelevel import LLAMA3, QWEN2
from ayllu.text.vocabularies.gguf import from_metadata
from ayllu.text.vocabularies.tiktoken import reserved_names

STORIES = Path(__file__).parents[1] / "fixtures" / "stories260K"

MIXED = [
    "",
    " ",
    "a",
    "Once upon a time, there was a little girl named Lily.",
    "  two spaces in front, and behind  ",
    "Grüße aus Köln: Straße, Öl, ÄÖÜß – „Anführung“ …",
    "నమస్కారం! తెలుగు భాష చాలా అందమైనది. ౧౨౩",
    "🦙👩‍🌾🏔️ emoji 🇩🇪 and ½ ﬁ ﬀ ① Å Å",
    "def f(x):\n\treturn {'a': x ** 2}  # code\n\n\n    if x >= 1e-5:\r\n        pass",
    "\u2581 a typed sign \u2581\u2581",
    "x\u00a0y\u3000z\u200bw\ufeff",
    "<s> </s> <unk> <0x41> <|im_end|> [INST]",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 1234567890 !!!!!!!!",
    "cafe\u0301 \u0c95\u0ccd\u0cb7 \u1100\u1161\u11a8",
]
texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
    st.text(" \n\t\r\u00a0\u2581\u3000a.", max_size=40),
    st.text("abcdehilnorstu ", max_size=60),
    st.text(st.characters(max_codepoint=0x24F), max_size=60),
    st.text(st.characters(min_codepoint=0x0C00, max_codepoint=0x0C7F) | st.just(" "), max_size=40),
    st.lists(st.sampled_from([*MIXED, "<s>", "</s>", "<0x0A>", "<|eot_id|>", "<ok>", "  "]), max_size=4).map(
        "".join
    ),
)


def many(examples: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


# ---- SentencePiece
def trained(paragraphs: dict[str, list[str]], **options: Any) -> bytes:
    """A small SentencePiece model of the default corpus."""
    stream = io.BytesIO()
    lines = [line for blocks in paragraphs.values() for block in blocks[:60] for line in block.split("\n")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=stream,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **{"vocab_size": 1200, **options},
    )
    return stream.getvalue()


# The normalisers, byte fallback, the two algorithms, user-defined pieces: each with and without.
LLAMA_LIKE: dict[str, Any] = {
    "model_type": "bpe",
    "byte_fallback": True,
    "split_digits": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
}
SENTENCEPIECE: dict[str, dict[str, Any]] = {
    "llama": LLAMA_LIKE,
    "bpe, unknown characters": {
        "model_type": "bpe",
        "character_coverage": 0.99,
        "normalization_rule_name": "identity",
    },
    "bpe, own pieces": {
        **LLAMA_LIKE,
        "user_defined_symbols": ["<ok>", "▁▁▁▁", "Haus", "\t"],
        "control_symbols": ["<c>"],
    },
    "bpe, nfkc, no space in front": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "nmt_nfkc_cf",
        "add_dummy_prefix": False,
    },
    "unigram": {"model_type": "unigram", "character_coverage": 0.99},
    "unigram, bytes": {**LLAMA_LIKE, "model_type": "unigram", "vocab_size": 1400},
    "unigram, own pieces": {
        "model_type": "unigram",
        "user_defined_symbols": ["Haus", "▁▁"],
        "normalization_rule_name": "identity",
        "byte_fallback": True,
        "vocab_size": 1400,
    },
}


@pytest.fixture(scope="session", params=list(SENTENCEPIECE))
def pair(
    request: pytest.FixtureRequest, paragraphs: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, sentencepiece.SentencePieceProcessor]:
    folder = tmp_path_factory.mktemp("spm")
    model = trained(paragraphs, **SENTENCEPIECE[request.param])
    (folder / "tokenizer.model").write_bytes(model)
    return Tokenizer.load(folder), sentencepiece.SentencePieceProcessor(model_proto=model)


def without_markup(judge: sentencepiece.SentencePieceProcessor, text: str) -> str:
    """The one deliberate difference: user-defined pieces that look like markup are not read from text."""
    return text.replace("<ok>", "(ok)")


def test_sentencepiece_ids_on_mixed_text(
    pair: tuple[Tokenizer, sentencepiece.SentencePieceProcessor], paragraphs: dict[str, list[str]]
) -> None:
    ours, judge = pair
    for text in [*MIXED, *(block for blocks in paragraphs.values() for block in blocks[-10:])]:
        assert ours.encode(text) == judge.encode(text), text
    assert ours.vocab_size == judge.vocab_size()
    assert (ours.bos, ours.eos) == (judge.bos_id(), (judge.eos_id(),))


@many(900)
@given(text=texts)
def test_sentencepiece_ids(pair: tuple[Tokenizer, sentencepiece.SentencePieceProcessor], text: str) -> None:
    ours, judge = pair
    text = without_markup(judge, text)
    ids = judge.encode(text)
    assert ours.encode(text) == ids
    assert not set(ids) & set(ours.control.values())


@many(100)
@given(text=texts)
def test_sentencepiece_text(pair: tuple[Tokenizer, sentencepiece.SentencePieceProcessor], text: str) -> None:
    ours, judge = pair
    ids = ours.encode(text)
    assert ours.decode([ours.bos or 0, *ids, *ours.eos]) == judge.decode(ids)
    stream = StreamDecoder(ours)
    assert "".join(map(stream.push, ids)) + stream.flush() == judge.decode(ids)


def test_markup_typed_as_text_stays_text(paragraphs: dict[str, list[str]], tmp_path: Path) -> None:
    options = SENTENCEPIECE["bpe, own pieces"]
    (tmp_path / "tokenizer.model").write_bytes(trained(paragraphs, **options))
    ours = Tokenizer.load(tmp_path)
    assert {"<s>", "</s>", "<c>", "<ok>"} <= ours.control.keys()
    for name in ours.control:
        for text in (name, f"a{name}b", f" {name} ", name * 3, name[:-1], name[1:]):
            assert not set(ours.encode(text)) & set(ours.control.values())
            assert ours.decode(ours.encode(text)) == text
    assert "Haus" in [ours.decode([i]) for i in ours.encode("Haus")], (
        "an ordinary piece of the user's is read"
    )


def test_a_stream_that_goes_on_keeps_its_first_space() -> None:
    tokenizer = Tokenizer.load(STORIES)
    ids = tokenizer.encode("a time")
    assert StreamDecoder(tokenizer).push(ids[0]) == "a"
    assert StreamDecoder(tokenizer, continues=True).push(ids[0]) == " a"


# ---- a real file
@pytest.fixture(scope="session")
def stories() -> tuple[Tokenizer, sentencepiece.SentencePieceProcessor]:
    judge = sentencepiece.SentencePieceProcessor(model_file=str(STORIES / "tokenizer.model"))
    return Tokenizer.load(STORIES), judge


def test_stories_conventions(stories: tuple[Tokenizer, Any]) -> None:
    ours, _ = stories
    assert (ours.vocab_size, ours.bos, ours.eos, ours.prefix) == (512, 1, (2,), (1,))
    assert not ours.native


@many(1000)
@given(text=texts)
def test_stories_ids(stories: tuple[Tokenizer, Any], text: str) -> None:
    ours, judge = stories
    assert ours.encode(text) == judge.encode(text)


# ---- tiktoken and tokenizer.json
@pytest.fixture(scope="session")
def ranks(paragraphs: dict[str, list[str]]) -> dict[bytes, int]:
    """Byte pairs trained with tiktoken's own teaching code's rule: ours, ordered by when they were merged."""
    trained = train_tokenizer((b for blocks in paragraphs.values() for b in blocks[:60]), 1500)
    pieces = [trained.piece_bytes(i) for i in range(16, trained.vocab_size)]
    return {piece: rank for rank, piece in enumerate(pieces)}


@pytest.fixture(scope="session")
def llama3(
    ranks: dict[bytes, int], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, tiktoken.Encoding]:
    folder = tmp_path_factory.mktemp("llama3")
    lines = [base64.b64encode(piece) + b" %d\n" % rank for piece, rank in ranks.items()]
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    special = {name: len(ranks) + i for i, name in enumerate(reserved_names())}
    judge = tiktoken.Encoding("small", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens=special)
    return Tokenizer.load(folder), judge


def test_llama3_names(llama3: tuple[Tokenizer, tiktoken.Encoding]) -> None:
    ours, judge = llama3
    base = judge.n_vocab - 256
    assert [
        ours.control[n] - base for n in ("<|begin_of_text|>", "<|eot_id|>", "<|reserved_special_token_247|>")
    ] == [0, 9, 255]
    assert ours.prefix == (base,) and set(ours.eos) == {base + 1, base + 8, base + 9}
    for name in ours.control:
        assert not set(ours.encode(f"a{name} {name}")) & set(ours.control.values())


@many(1500)
@given(text=texts)
def test_tiktoken_ids(llama3: tuple[Tokenizer, tiktoken.Encoding], text: str) -> None:
    ours, judge = llama3
    ids = judge.encode(text, disallowed_special=())
    assert ours.encode(text) == ids
    assert ours.decode(ids) == text


def hf_json(ranks: dict[bytes, int], pattern: str) -> dict[str, Any]:
    """A tokenizer.json in Qwen's manner: special tokens behind the pieces, markup that is not special."""
    from ayllu.text.vocabularies.bytelevel import byte_level, signs
    from ayllu.text.vocabularies.vocabulary import all_merges

    vocabulary = {signs(p): r for p, r in ranks.items()}
    merges = all_merges(vocabulary, {p: r for p, r in vocabulary.items() if len(p) > 1})
    inner = byte_level(vocabulary, merges, pattern, "test", compose=True)
    inner.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    inner.add_tokens(["<think>", "</think>", "   "])
    return dict(json.loads(inner.to_str()))


@pytest.fixture(scope="session")
def qwen(ranks: dict[bytes, int], tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("qwen")
    (folder / "tokenizer.json").write_text(json.dumps(hf_json(ranks, QWEN2)))
    spoken = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "split_special_tokens": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(spoken))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, len(ranks)]}))
    return Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)


@many(1000)
@given(text=texts)
def test_tokenizer_json_ids(qwen: tuple[Tokenizer, Any], text: str) -> None:
    ours, judge = qwen
    assert ours.encode(text) == judge(text, add_special_tokens=False)["input_ids"]


def test_tokenizer_json_conventions(qwen: tuple[Tokenizer, Any], ranks: dict[bytes, int]) -> None:
    ours, judge = qwen
    size = len(ranks)
    assert ours.control == {
        "<|im_start|>": size,
        "<|im_end|>": size + 1,
        "<think>": size + 2,
        "</think>": size + 3,
    }
    assert ours.eos == (3, size, size + 1) and ours.bos is None and ours.prefix == ()
    assert ours.encode("a   b") == judge("a   b", add_special_tokens=False)["input_ids"]
    assert size + 4 in ours.encode("a   b"), "an added token that is no markup is a piece of text"
    assert not set(ours.encode("<think>x</think><|im_end|>")) & set(ours.control.values())
    assert ours.decode([size + 2, *ours.encode("x"), size + 3, size + 1]) == "<think>x</think>"


@pytest.mark.parametrize("kind", ["unigram", "whole words"])
def test_a_tokenizer_json_that_would_find_its_control_tokens(kind: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers

    if kind == "unigram":
        inner = Inner(
            models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *((c, -9.0) for c in "▁</s>ax"[:7])][:8], 0)
        )
        inner.pre_tokenizer = pre_tokenizers.Metaspace()
        inner.decoder = decoders.Metaspace()
    else:
        pieces = ["<unk>", "</s>", "<", "/", "s", ">", "a", "Ġ"]
        inner = Inner(models.BPE({p: i for i, p in enumerate(pieces)}, [], ignore_merges=True))
        inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["</s>", "<unk>"])
    (tmp_path / "tokenizer.json").write_text(inner.to_str())
    ours = Tokenizer.load(tmp_path)
    assert ours.control["</s>"] == 1
    for text in ("</s>", "a</s>", "</s></s>"):
        assert 1 not in ours.encode(text)


# ---- GGUF
def gguf_values(model: bytes) -> dict[str, Any]:
    """A SentencePiece model as llama.cpp's converter writes it."""
    judge = sentencepiece.SentencePieceProcessor(model_proto=model)
    parsed = our_sentencepiece.read_model(model)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [judge.id_to_piece(i) for i in range(judge.vocab_size())],
        "tokenizer.ggml.scores": [judge.get_score(i) for i in range(judge.vocab_size())],
        "tokenizer.ggml.token_type": [piece.type for piece in parsed.pieces],
        "tokenizer.ggml.remove_extra_whitespaces": parsed.remove_extra_spaces,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{{ messages }}",
    }


@many(1000)
@given(text=texts)
def test_gguf_sentencepiece_ids(stories: tuple[Tokenizer, Any], text: str) -> None:
    _, judge = stories
    found = _gguf_stories()
    assert Tokenizer(found.inner, found).encode(text) == judge.encode(text)
    assert (found.bos, found.eos, found.prefix) == (1, (2,), (1,))
    assert found.chat_templates == {"default": "{{ messages }}"}


def _gguf_stories(_kept: list[Any] = []) -> Any:  # noqa: B006 (built once)
    if not _kept:
        values = gguf_values((STORIES / "tokenizer.model").read_bytes())
        _kept.append(from_metadata(values, Path("stories.gguf")))
    return _kept[0]


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "default", "qwen35"])
def test_gguf_byte_pairs(
    ranks: dict[bytes, int], llama3: tuple[Tokenizer, Any], qwen: tuple[Tokenizer, Any], pre: str
) -> None:
    model = hf_json(ranks, LLAMA3)["model"]
    tokens = [*model["vocab"], "<|im_start|>", "<tool>", "   ", "[PAD9]"]
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * len(model["vocab"]) + [3, 4, 4, 5],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.eos_token_id": 5,
        "tokenizer.ggml.eot_token_id": len(model["vocab"]),
    }
    found = from_metadata(values, Path("x.gguf"))
    ours, size = Tokenizer(found.inner, found), len(model["vocab"])
    for text in MIXED:
        if pre == "llama-bpe":
            assert ours.encode(text) == llama3[0].encode(text) or "   " in text
        if pre == "qwen2":
            assert ours.encode(text) == qwen[0].encode(text) or "   " in text
    assert ours.eos == (5, size) and ours.control == {"<|im_start|>": size, "<tool>": size + 1}
    text = "12 <|im_start|><tool>a   b[PAD9]"
    assert ours.decode(ours.encode(text)) == text
    assert not set(ours.encode(text)) & {size, size + 1, size + 3} and size + 2 in ours.encode(text)


def test_gguf_faults() -> None:
    sound = gguf_values((STORIES / "tokenizer.model").read_bytes())
    for key, value in {
        "model": "rwkv", "tokens": 7, "scores": [0.0], "token_type": [9] * 512, "bos_token_id": 512,
        "eos_token_id": "2", "add_bos_token": 3,
    }.items():  # fmt: skip
        with pytest.raises((ValueError, ModelFileDamagedError)):
            from_metadata({**sound, f"tokenizer.ggml.{key}": value}, Path("x.gguf"))
    with pytest.raises(ModelFileMissingError):
        Tokenizer.load(Path("nothing.gguf"))


# ---- damage and hostility
@pytest.mark.parametrize("kind", ["sentencepiece", "charsmap", "ranks", "json"])
def test_damaged_files_give_typed_errors(
    kind: str, paragraphs: dict[str, list[str]], ranks: dict[bytes, int], tmp_path: Path
) -> None:
    if kind == "ranks":
        lines = [base64.b64encode(piece) + b" %d\n" % rank for piece, rank in list(ranks.items())[:400]]
        sound, name = b"".join(lines), "tokenizer.model"
    elif kind == "json":
        sound, name = json.dumps(hf_json(dict(list(ranks.items())[:400]), QWEN2)).encode(), "tokenizer.json"
    elif kind == "charsmap":
        sound, name = trained(paragraphs, model_type="bpe", vocab_size=400), "tokenizer.model"
    else:
        sound, name = (STORIES / "tokenizer.model").read_bytes(), "tokenizer.model"
    chance = random.Random(kind)
    refused = 0
    for _ in range(20 if kind == "charsmap" else 150):
        data = bytearray(sound)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data))
            match chance.randrange(4):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    del data[at : at + chance.randint(1, 200)]
                case 2:
                    data[at:at] = data[chance.randrange(len(data)) :][: chance.randint(1, 200)]
                case _:
                    data = data[:at] or bytearray(b"x")
        (tmp_path / name).write_bytes(data)
        try:
            tokenizer = Tokenizer.load(tmp_path)
            ids = tokenizer.encode("Once upon a time </s> ü\n  <|eot_id|>")
            assert not set(ids) & set(tokenizer.control.values())
        except ModelFileDamagedError:
            refused += 1
    assert refused > 3


def test_a_damaged_file_of_json_beside_it(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((STORIES / "tokenizer.model").read_bytes())
    for content in ("[", "[]", '{"eos_token_id": "x"}', '{"eos_token_id": [true]}', "[" * 100_000):
        (tmp_path / "generation_config.json").write_text(content)
        with pytest.raises(ModelFileDamagedError):
            Tokenizer.load(tmp_path)


def test_a_trie_with_a_loop() -> None:
    from ayllu.text.vocabularies.charsmap import read_charsmap

    # Every child leads back to the root.
    trie = b"".join(((byte << 10) | byte).to_bytes(4, "little") for byte in range(256))
    with pytest.raises(ValueError, match="loop"):
        read_charsmap(len(trie).to_bytes(4, "little") + trie + b"a\0")
    with pytest.raises(ValueError, match="fit"):
        read_charsmap((4 * len(trie)).to_bytes(4, "little") + trie)


HOSTILE = [
    *" \n\ta A1'!éక్🦙▁\u0301\u00a0\x00\u200d<", "'s", " \n", "a ", "1a", "!\n", "<s>", "ab",
]  # fmt: skip


@pytest.mark.parametrize("which", ["stories", "llama3", "qwen"])
def test_time_is_linear_in_hostile_text(which: str, request: pytest.FixtureRequest) -> None:
    # 25 strings of each of two sizes; four times the text may take about four times as long.
    tokenizer: Tokenizer = request.getfixturevalue(which)[0]
    total = 0.0
    for unit in HOSTILE:
        times = []
        for size in (10_000, 40_000):
            text = (unit * size)[:size] + "x"
            began = time.process_time()
            tokenizer.encode(text)
            times.append(time.process_time() - began)
        total += sum(times)
        assert times[1] < 12 * times[0] + 0.05, unit
    assert total < 15
