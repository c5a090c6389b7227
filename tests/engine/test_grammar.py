"""Constrained output: whatever the model wants, the text fits; what can't be compiled is refused, quickly."""

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import go_on, sample_one, sequence
from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models, normalizers

from ayllu.engine import sampler
from ayllu.engine.grammar import Matcher, matcher
from ayllu.engine.request import Grammar, Row, ThinkingBudget
from ayllu.errors import GrammarFailedError, RequestError
from ayllu.text.tokenizer import Tokenizer, train_tokenizer

TEXT = '{"name": "Ana", "age": 31, "tags": ["x", "y"]} true false null 2024-05-06 ఎలా "é" yes no maybe '
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


PATTERN = r"(true|ab{2,4}|[12]{3})!?"
FLAGS = {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}
CHOICES = ["yes", 'ja "ß"\n', "ఎలా 🙂"]


def schema(value):
    return Grammar("json_schema", json.dumps(value))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(iter([TEXT * 4]), 340)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A SentencePiece-like vocabulary: U+2581 for a space, bytes as <0x..> pieces."""
    words = [
        '{"',
        '":',
        '"}',
        "▁",
        "▁true",
        "true",
        "name",
        "▁yes",
        "a",
        "b",
        "1",
        "2",
        '"',
        "{",
        "}",
        ":",
        ",",
    ]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words]
    inner = Inner(models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    folder = tmp_path_factory.mktemp("foreign")
    inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "bos_token": "<s>"}))
    found = Tokenizer.load(folder)
    assert not found.native
    return found


def noise(seed, vocab, spread=2.0, **favourites):
    """Logits that know nothing of any grammar, new at every place."""

    def logits(one):
        generator = torch.Generator().manual_seed(1000 * seed + len(one.token_ids))
        row = spread * torch.randn(vocab, generator=generator)
        for token, value in favourites.get("plus", {}).items():
            row[token] += value
        return row

    return logits


def run(tokenizer, spec, seed=0, *, vocab=None, limit=400, logits=None, **options):
    vocab = vocab or tokenizer.vocab_size
    one = sequence(seed, tokenizer=tokenizer, vocab=vocab, limit=limit, grammar=spec, **options)
    return go_on(one, logits or noise(seed, vocab))


def text_of(tokenizer, one):
    return b"".join(map(tokenizer.piece_bytes, one.token_ids)).decode()


# ---- what comes out fits
@settings(deadline=None, max_examples=12)
@given(
    seed=st.integers(0, 10**6), temperature=st.sampled_from([0.0, 0.7, 3.0]), padding=st.sampled_from([0, 37])
)
def test_json_fits_its_schema(tokenizer, seed, temperature, padding):
    end = tokenizer.control["<|end|>"]
    vocab = tokenizer.vocab_size + padding  # a model's head is often wider than its vocabulary
    stops = (end, tokenizer.control["<|/tool|>"])
    one = run(tokenizer, schema(PERSON), seed, vocab=vocab, temperature=temperature, stop_ids=stops)
    if one.finish_reason == "length":
        return
    assert one.finish_reason == "stop" and one.token_ids[-1] == end
    value = json.loads(text_of(tokenizer, one))
    assert set(value) == {"name", "age", "kind"} and value["kind"] in ("cat", "dog")
    assert isinstance(value["name"], str) and len(value["name"]) <= 8 and 0 <= value["age"] <= 120


@pytest.mark.parametrize("which", ["tokenizer", "foreign"])
@pytest.mark.parametrize("stops", [True, False])
@pytest.mark.parametrize(
    ("spec", "fits"),
    [
        (Grammar("regex", PATTERN), lambda t: re.fullmatch(PATTERN, t)),
        (Grammar("choice", json.dumps(CHOICES)), lambda t: t in CHOICES),
        (Grammar("lark", 'start: "a" [start] "b"'), lambda t: re.fullmatch("a*b*", t) and len(t) % 2 == 0),
        (schema(FLAGS), lambda t: len(json.loads(t)) < 4),
    ],
)  # fmt: skip
def test_every_kind_in_every_vocabulary(request, which, stops, spec, fits):
    tokenizer = request.getfixturevalue(which)
    end = tokenizer.eos[0]
    done = 0
    for seed in range(6):
        logits = noise(seed, tokenizer.vocab_size, plus={end: 3.0})
        one = run(tokenizer, spec, seed, stop_ids=(end,) if stops else (), limit=150, logits=logits)
        assert one.error is None and one.token_ids
        if one.finish_reason == "stop":
            done += 1
            assert fits(text_of(tokenizer, one)), text_of(tokenizer, one)
    assert done >= (3 if stops else 1)


def test_any_json_object(tokenizer):
    end = tokenizer.control["<|end|>"]
    logits = noise(1, tokenizer.vocab_size, plus={end: 30.0, tokenizer.encode("}")[0]: 6.0})
    one = run(tokenizer, Grammar("json"), logits=logits, stop_ids=(end,))
    assert isinstance(json.loads(text_of(tokenizer, one)), dict)


def test_white_space_is_bounded(tokenizer):
    """A model that wants nothing but spaces and line ends can't get lost in them."""
    blank = {i: 40.0 for i in range(tokenizer.vocab_size) if tokenizer.piece_bytes(i).isspace()}
    spec = schema({**PERSON, "properties": {**PERSON["properties"], "name": {"const": "Ana"}}})
    one = run(tokenizer, spec, logits=noise(1, tokenizer.vocab_size, plus=blank), limit=500)
    assert one.finish_reason == "stop" and json.loads(text_of(tokenizer, one))["name"] == "Ana"


def test_a_grammar_gets_at_no_control_token(tokenizer):
    user = tokenizer.control["<|user|>"]
    one = sequence(
        tokenizer=tokenizer, vocab=tokenizer.vocab_size, grammar=Grammar("lark", f'start: <[{user}]> | "a"')
    )
    allowed_V, _ = one.state.matcher.allowed()
    assert not allowed_V[list(tokenizer.control.values())].any()
    with pytest.raises(RequestError):
        matcher(Grammar("lark", "start: <|user|>"), tokenizer, tokenizer.vocab_size)


# ---- with thinking
@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("will", [9.0, -50.0])
def test_the_grammar_begins_after_the_thinking(tokenizer, opened, will):
    think, close, end = (tokenizer.control[n] for n in ("<|think|>", "<|/think|>", "<|end|>"))
    budget = ThinkingBudget(think, close, maximum=10, soft=6, opened=opened)
    logits = noise(3, tokenizer.vocab_size, plus={think: will, end: 4.0})
    options = {"thinking": budget, "stop_ids": (end,), "stop_strings": ("maybe",)}
    one = run(tokenizer, Grammar("choice", '["yes maybe yes", "no maybe no"]'), logits=logits, **options)
    ids = one.token_ids
    assert one.finish_reason == "stop"
    if opened or will > 0:
        at = ids.index(close)
        assert (ids[0] == think) == (not opened) and at <= 11 and end not in ids[:at]
        ids = ids[at + 1 :]
    else:
        assert close not in ids and think not in ids, "a model that never thinks answers at once"
    # The stop string ends it in the middle of the answer.
    assert tokenizer.decode(ids) in ("yes maybe", "no maybe")


# ---- closed, whatever happens
class Broken:
    """A matcher whose library fails: an error that it reports late, or an exception."""

    def __init__(self, inner, at, how):
        self.inner, self.left, self.how, self.failed = inner, at, how, False

    def try_consume_tokens(self, tokens):
        return len(tokens) if self.inner is None else self.inner.try_consume_tokens(tokens)

    def compute_bitmask(self):
        self.left -= 1
        if self.left < 0:
            self.failed = True
            if self.how == "raises":
                raise ValueError("internal")
            return b"\xff" * len(self.inner.compute_bitmask())  # lets everything through
        return self.inner.compute_bitmask()

    def is_error(self):
        return self.failed

    def get_error(self):
        return "ParserTooComplex"

    def __getattr__(self, name):
        return getattr(self.inner, name)


@pytest.mark.parametrize("how", ["reports", "raises"])
def test_a_failing_matcher_ends_its_sequence_and_no_other(tokenizer, how):
    vocab = tokenizer.vocab_size
    one = sequence(tokenizer=tokenizer, vocab=vocab, grammar=Grammar("regex", "[ab]{30}"))
    real = one.state.matcher
    one.state.matcher = Matcher(Broken(real._inner, 4, how), real._vocabulary)
    other = sequence(5, temperature=0.9, top_p=0.9)
    logits = noise(0, vocab)
    for _ in range(6):
        rows = [Row(one), Row(other)]
        row_2V = torch.stack([logits(one), logits(other)])
        alone = sampler.sample(row_2V[1:], rows[1:])[0]
        got = sampler.sample(row_2V, rows)
        assert got[1] == alone
        other.append(got[1].token, 0.0)
        if one.state.error is not None:
            break
        one.append(got[0].token, 0.0)
    assert len(one.token_ids) == 4 and isinstance(one.state.error, GrammarFailedError)
    assert re.fullmatch("[ab]{4,}", text_of(tokenizer, one))


def test_a_token_that_does_not_fit_is_an_error(tokenizer):
    one = sequence(tokenizer=tokenizer, vocab=tokenizer.vocab_size, grammar=Grammar("regex", "[ab]{30}"))
    one.append(tokenizer.encode("x")[0], 0.0)
    assert one.finish_reason == "error" and isinstance(one.state.error, GrammarFailedError)


def test_limits_hold_while_generating(tokenizer):
    one = run(tokenizer, Grammar("regex", ".*[ab].{60}[cd].{60}e.*"), limit=120)
    assert one.finish_reason in ("error", "length")


# ---- drafts
@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 10**6), ahead=st.integers(1, 6))
def test_looking_ahead_is_going_there(tokenizer, seed, ahead):
    make = lambda: sequence(  # noqa: E731
        seed,
        tokenizer=tokenizer,
        vocab=tokenizer.vocab_size,
        grammar=schema(PERSON),
        limit=30,
        presence_penalty=0.5,
    )
    logits = noise(seed, tokenizer.vocab_size)
    walked = go_on(make(), logits)
    looking = make()
    for at, token in enumerate(walked.token_ids):
        drafts = walked.token_ids[at : at + ahead]
        for k in range(len(drafts)):
            place = walked.token_ids[: at + k]
            fake = sequence(position=len(place))
            got = sample_one(logits(fake), looking, drafts[:k])
            assert got.token == walked.token_ids[at + k]
        looking.append(token, 0.0)
    wrong = tokenizer.encode("]")
    sample_one(logits(looking), looking, wrong)  # drafts that can't be: anything may come, nothing breaks
    assert looking.state.error is None


def test_a_failure_after_drafts_counts_only_if_they_are_taken(tokenizer):
    logits = noise(0, tokenizer.vocab_size)
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    for first, fails in ((a, True), (b, False)):
        one = sequence(tokenizer=tokenizer, vocab=tokenizer.vocab_size, grammar=Grammar("regex", "[ab]{30}"))
        sample_one(logits(one), one)
        real = one.state.matcher
        one.state.matcher = Matcher(Broken(None, 0, "raises"), real._vocabulary)
        sample_one(logits(one), one, (a,))
        one.state.matcher = real
        assert one.state.error is None
        one.append(first, 0.0)
        assert (one.state.error is not None) == fails
        sample_one(logits(one), one)
        one.append(a, 0.0)
        assert (one.finish_reason == "error") == fails
