"""Documents, words and tokens."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayllu.text.document import Document, codes, document_from_row, tokens, words
from ayllu.text.language import declaration
from ayllu.text.tags import _PRIMARY, primary_tag

texts = st.text(st.characters(exclude_categories=["Cs"]))
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
documents = st.builds(
    Document,
    id=names,
    text=texts,
    source=names,
    licence=names,
    language=st.sampled_from(["", "en", "te"]),
    origin=texts,
    title=texts,
    author=texts,
    date=texts,
    year=st.none() | st.integers(0, 2030),
    machine_translated=st.booleans(),
)


@given(documents)
def test_a_row_gives_the_same_document_back(document: Document) -> None:
    assert document_from_row(document.row(), source="other", number=1) == document


def test_a_row_without_a_name_gets_one() -> None:
    document = document_from_row(
        {"text": "a", "license": "CC0-1.0", "lang": "en_US"}, source="notes", number=7
    )
    assert (document.id, document.source, document.language) == ("notes/00007", "notes", "en")


@pytest.mark.parametrize(
    ("label", "tag"),
    [
        ("de", "de"), ("de-AT", "de"), ("deu", "de"), ("ger", "de"), ("deu_Latn", "de"), ("TEL", "te"),
        ("zho_Hant", "zh"), ("gsw", "gsw"), ("x-mine", "x-mine"), ("X_Mine", "x-mine"), (" en ", "en"),
        ("", ""),
    ],
)  # fmt: skip
def test_one_language_has_one_tag(label: str, tag: str) -> None:
    assert primary_tag(label) == tag
    row = {"text": "a", "license": "CC0-1.0", "lang": label}
    assert document_from_row(row, source="notes", number=1).language == tag


def test_every_language_of_the_sample_has_its_longer_codes() -> None:
    shorter = {primary_tag(code) for code in _PRIMARY}
    assert shorter == set(declaration())


def test_parts_of_one_work_share_it() -> None:
    a = Document(id="books/1#0", text="a", source="books", licence="CC0-1.0")
    b = Document(id="books/1#12", text="b", source="books", licence="CC0-1.0")
    other = Document(id="books/2#0", text="b", source="books", licence="CC0-1.0")
    assert a.work == b.work != other.work
    sections = [
        Document(id=f"epic/{n}", text="", source="epic", licence="CC0-1.0", title="Bhagavatham")
        for n in range(3)
    ]
    assert len({d.work for d in sections}) == 1


def test_words_keep_combining_marks() -> None:
    assert words("రాజనందనుఁడును బంగారు, Größe's 42!") == ["రాజనందనుఁడును", "బంగారు", "größe", "s", "42"]
    assert words("క్‌షే") == ["క్‌షే"]  # with a zero-width non-joiner inside
    decomposed = unicodedata.normalize("NFD", "größe")
    assert words(decomposed) == [decomposed]


@given(texts)
def test_tokens_hold_every_sign_but_white_space(text: str) -> None:
    assert "".join(tokens(text)) == "".join(text.lower().split())


def test_tokens_of_a_sum() -> None:
    assert tokens("What is 417 + 385?") == ["what", "is", "417", "+", "385", "?"]


def test_codes_are_the_same_everywhere() -> None:
    # blake2b is standardised (RFC 7693): this number holds on every machine.
    assert codes(["ayllu", "ayllu"], {}).tolist() == [0x190980C11A47EE9B] * 2
