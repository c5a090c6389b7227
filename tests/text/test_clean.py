"""Normal form, unwrapping, private data, and every quality rule with its measured value."""

from __future__ import annotations

import dataclasses
import random
import textwrap
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayllu.text.clean import RULES, Profile, iban, judge, learn_profiles, luhn, measure, normalise, unwrap
from ayllu.text.clean import remove_private as remove

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=400)


# ---- normal form
@given(texts)
def test_the_normal_form_is_stable(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in once)
    assert "\n\n\n\n" not in once


@given(texts)
def test_no_letter_is_lost(text: str) -> None:
    def letters(value: str) -> list[str]:
        return [c for c in unicodedata.normalize("NFC", value) if unicodedata.category(c)[0] in "LN"]

    assert letters(normalise(text)) == letters(text)


def test_what_is_stripped_and_what_stays() -> None:
    assert normalise("\ufeffa\u00adb\u200b \x00c\x1b\r\nd  \r\re\n\n\n\n\n\nf ") == "ab c\nd\n\ne\n\n\nf"
    assert normalise("క్‌షే క్‍ష") == "క్‌షే క్‍ష"  # the joiners are spelling


PROSE = (
    "The quick brown fox jumps over the lazy dog while seventeen sleepy herdsmen look on from the hill, "
    "and nobody in the whole of the valley has the slightest idea what is going to come of all this. "
) * 4


@pytest.mark.parametrize("width", [60, 72, 79, 95])
def test_wrapped_prose_is_unwrapped_exactly(width: int) -> None:
    paragraphs = [PROSE.strip(), PROSE[100:].strip(), "A short one.", PROSE[57:].strip()]
    wrapped = "\n\n".join("\n".join(textwrap.wrap(p, width, break_on_hyphens=False)) for p in paragraphs)
    assert unwrap(wrapped) == "\n\n".join(paragraphs)


def test_verse_lists_code_and_tables_stay() -> None:
    wrapped = "\n\n".join(["\n".join(textwrap.wrap(PROSE, 72))] * 4)
    verse = "Tyger Tyger, burning bright,\nIn the forests of the night;\nWhat immortal hand or eye,"
    laid_out = (
        verse,
        "- one thing that is long enough to fill the line up to its very end, nearly\n- another",
        "    for line in lines:\n        print(line)",
        "| a | b |\n|---|---|\n| 1 | 2 |",
        "# A heading\n## Another",
        "1. first of all, something that fills the whole line to the last column, yes\n2. second",
    )
    for block in laid_out:
        assert unwrap(f"{wrapped}\n\n{block}").endswith(block)
    assert unwrap("\n\n".join([verse] * 20)) == "\n\n".join([verse] * 20)


def test_long_verse_is_no_wrapped_prose(paragraphs: dict[str, list[str]]) -> None:
    text = "\n\n".join(paragraphs["te"][:40])
    assert unwrap(text) == text


# ---- private data
PRIVATE = {
    "email": ["anna.huber@example.org", "a+b_c@mail.example.co.uk"],
    "phone": ["+49 30 1234567", "+49 (0)30 123456-78", "0091 98765 43210", "(030) 1234567", "0171/1234567",
              "(555) 234-5678", "555-234-5678", "+91-98765-43210", "+1 555 234 5678"],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", "NO93 8601 1117 947"],
    "card": ["4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005"],
    "ip": ["8.8.8.8", "134.76.10.46"],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "value"), [(k, v) for k, values in PRIVATE.items() for v in values])
@pytest.mark.parametrize("frame", ["{}", "Call me: {}.", "({})", "see {}, please", "నా సంఖ్య {} అండి"])
def test_private_data_becomes_a_marker(kind: str, value: str, frame: str) -> None:
    text, found = remove(frame.format(value))
    assert text == frame.format(f"[{kind}]")
    assert found == {kind: 1}


LOOKALIKES = (
    "2024-03-17", "17.03.2024", "1939-1945", "§ 242 Abs. 2 Satz 1", "ISBN 978-3-16-148410-0", "3.14159265",
    "127.0.0.1", "192.168.1.20", "10.0.0.1", "300.1.2.3", "version 1.2.3.4.5", "1,234,567.89", "12:30:45",
    "1000000000000000", "4111 1111 1111 1112", "GB82 TEST 1234 5698 7654 33", "@property", "a @ b",
    "2000 - 3000", "0000-0000-0000-0000", "PEP 3107, 2006-12-02", "eip-7568", "5, 10, 15, 20, 25",
    "417 + 385 = 802", "20070730120117", "0x00123456",
)  # fmt: skip


@pytest.mark.parametrize("text", LOOKALIKES)
def test_what_only_looks_like_private_data_stays(text: str) -> None:
    assert remove(text) == (text, {})


def test_each_piece_is_counted() -> None:
    text, found = remove("a@b.org, c@d.org and +49 30 1234567 from 8.8.4.4")
    assert text == "[email], [email] and [phone] from [ip]"
    assert found == {"email": 2, "phone": 1, "ip": 1}


@given(texts)
def test_removing_twice_finds_nothing_new(text: str) -> None:
    once, _ = remove(text)
    assert remove(once) == (once, {})


@given(st.integers(10**12, 10**18 - 1))
def test_one_check_digit_of_ten_fits(stem: int) -> None:
    assert sum(luhn(f"{stem}{digit}") for digit in range(10)) == 1


def test_the_check_digits_of_an_account_number() -> None:
    good = "DE89370400440532013000"
    assert iban(good)
    for place in range(4, len(good)):
        assert not iban(good[:place] + str((int(good[place]) + 1) % 10) + good[place + 1 :])


# ---- quality
@pytest.fixture(scope="module")
def profiles(paragraphs: dict[str, list[str]]) -> dict[str, Profile]:
    facts = [(lang, measure(b, 6.0)) for lang, blocks in paragraphs.items() for b in blocks[:100]]
    return learn_profiles(facts)


def random_words(rng: random.Random, low: int, high: int, count: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return " ".join("".join(rng.choices(letters, k=rng.randint(low, high))) for _ in range(count))


RNG = random.Random(4)
JUNK = {
    "too_short": "Just a line.",
    "broken_characters": "Die SchÃ¶nheit der BÃ¼cher wÃ¤re grÃ¶ÃŸer. " + PROSE,
    "few_letters": " ".join(str(RNG.randint(1, 99999)) for _ in range(200)),
    "many_symbols": " ".join(RNG.choice(["word", "more", "text", "==", "<<>>"]) for _ in range(300)),
    "short_words": " ".join(RNG.choice("abcdefghij") for _ in range(300)),
    "long_words": random_words(RNG, 30, 60, 30),
    "repeated_lines": "\n".join(["Home  About us  Contact  Imprint"] * 20 + [PROSE]),
    "repeated_phrases": "buy the very best shoes here now and " * 60,
}


@pytest.mark.parametrize("rule", JUNK)
def test_each_rule_drops_its_junk(profiles: dict[str, Profile], rule: str) -> None:
    # On its own: with the rules before it switched off, the rule itself must be what drops the text.
    facts = measure(JUNK[rule], 6.0)
    failed = judge(facts, profiles["en"])
    assert failed is not None and failed.rule == rule, failed
    rule_row = next(r for r in RULES if r.name == rule)
    assert failed.value == pytest.approx(rule_row.value(facts), abs=1e-4)
    if rule_row.low:
        assert failed.value < failed.threshold
    else:
        assert failed.value > failed.threshold


def test_gibberish_is_dropped_by_surprise(profiles: dict[str, Profile]) -> None:
    facts = dataclasses.replace(measure(PROSE[:280], 9.0), repeated_phrases=0.0)
    failed = judge(facts, profiles["en"])
    assert failed is not None and (failed.rule, failed.value, failed.threshold) == ("gibberish", 9.0, 7.5)
    assert judge(dataclasses.replace(facts, surprise=7.4), profiles["en"]) is None


def test_every_rule_is_covered_here() -> None:
    assert {rule.name for rule in RULES} == {*JUNK, "gibberish"}


def test_sound_text_is_kept_in_every_language(
    profiles: dict[str, Profile], paragraphs: dict[str, list[str]]
) -> None:
    # English defaults drop 94-100 % of such German and Telugu text.
    for language, blocks in paragraphs.items():
        kept = sum(judge(measure(b, 6.0), profiles[language]) is None for b in blocks)
        assert kept >= 0.99 * len(blocks), language


def test_junk_does_not_move_the_profile(paragraphs: dict[str, list[str]]) -> None:
    sound = [("en", measure(b, 6.0)) for b in paragraphs["en"][:60]]
    mixed = sound + [("en", measure(random_words(RNG, 30, 60, 30), 9.0)) for _ in range(20)]
    before, after = learn_profiles(sound)["en"], learn_profiles(mixed)["en"]
    assert after.word_length < 1.15 * before.word_length
    failed = judge(measure(JUNK["long_words"], 9.0), after)
    assert failed is not None and failed.rule == "long_words"


def test_a_few_documents_are_judged_by_the_declaration(paragraphs: dict[str, list[str]]) -> None:
    profile = learn_profiles([("de", measure(JUNK["long_words"], 9.0))])["de"]
    assert profile.learnt_from == 0
    assert judge(measure(paragraphs["de"][0], 6.0), profile) is None
    assert judge(measure(JUNK["long_words"], 6.0), profile) is not None


def test_telugu_marks_count_as_letters() -> None:
    facts = measure("రాజనందనుఁడును బంగారు లేడి వెంట వెళ్ళెను")
    assert facts.letters == 1.0
    assert facts.symbols == 0.0
