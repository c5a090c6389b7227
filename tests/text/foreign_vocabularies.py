"""Texts that vocabularies differ in, and small vocabularies in the form of other models' files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

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


def trained(paragraphs: dict[str, list[str]], **options: Any) -> bytes:
    """A small SentencePiece model of the default corpus."""
    import sentencepiece  # here, since conftest.py reads this file for tests that need no judge

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
