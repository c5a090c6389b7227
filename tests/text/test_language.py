"""Language identification: sentences it has never read, wrong labels, and a language nobody told it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ayllu.text.document import Document
from ayllu.text.language import UNDETERMINED, learn_from, seed_identifier, usage

SENTENCES = {
    "en": "The children went down to the river in the morning and came back when it was already dark.",
    "de": "Die Kinder gingen am Morgen zum Fluss hinunter und kamen erst zurück, als es schon dunkel war.",
    "te": "పిల్లలు ఉదయం నదికి వెళ్ళి చీకటి పడిన తర్వాత తిరిగి వచ్చారు.",
    "fr": "Les enfants sont descendus à la rivière le matin et ne sont revenus que lorsqu'il faisait nuit.",
    "es": "Los niños bajaron al río por la mañana y volvieron cuando ya estaba oscuro.",
    "nl": "De kinderen gingen 's ochtends naar de rivier en kwamen pas terug toen het al donker was.",
    "hi": "बच्चे सुबह नदी पर गए और अंधेरा होने के बाद ही वापस आए।",
    "ta": "குழந்தைகள் காலையில் ஆற்றுக்குச் சென்று இருட்டிய பிறகு திரும்பி வந்தனர்.",
    "kn": "ಮಕ್ಕಳು ಬೆಳಿಗ್ಗೆ ನದಿಗೆ ಹೋಗಿ ಕತ್ತಲಾದ ನಂತರ ಹಿಂತಿರುಗಿದರು.",
    "ru": "Дети утром спустились к реке и вернулись, когда уже стемнело.",
    "pl": "Dzieci poszły rano nad rzekę i wróciły dopiero wtedy, gdy było już ciemno.",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_a_sentence_it_has_never_read(language: str) -> None:
    assert seed_identifier().guess(SENTENCES[language]).language == language


def test_real_paragraphs(paragraphs: dict[str, list[str]]) -> None:
    seed = seed_identifier()
    for language, blocks in paragraphs.items():
        right = sum(seed.guess(block).language == language for block in blocks)
        assert right >= 0.99 * len(blocks), language


@pytest.mark.parametrize("text", ["", "12345 67890 + - * / 11111 22222 33333 44444", "!?!", "ok"])
def test_too_little_to_say(text: str) -> None:
    assert seed_identifier().guess(text).language == UNDETERMINED


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_any_text_gives_a_verdict(text: str) -> None:
    guess = seed_identifier().guess(text)
    assert guess.margin >= 0
    assert guess.language in [*seed_identifier().languages, UNDETERMINED]


def document(number: int, text: str, language: str) -> Document:
    return Document(id=f"a/{number}", text=text, source="a", licence="CC0-1.0", language=language)


def test_wrong_labels_do_not_teach(paragraphs: dict[str, list[str]]) -> None:
    # Much of what is called English or Telugu is German: no profile may move towards German.
    blocks = [(b, "en") for b in paragraphs["en"][:20]] + [(b, "en") for b in paragraphs["de"][:20]]
    blocks += [(b, "te") for b in paragraphs["de"][:20]] + [(b, "te") for b in paragraphs["te"][:5]]
    learnt = learn_from([document(n, text, label) for n, (text, label) in enumerate(blocks)])
    for language in ("en", "de", "te"):
        assert all(learnt.guess(b).language == language for b in paragraphs[language][20:])


def test_a_big_corpus_does_not_draw_its_neighbours_to_itself(paragraphs: dict[str, list[str]]) -> None:
    documents = [document(n, b, "de") for n, b in enumerate(paragraphs["de"])]
    learnt = learn_from(documents)
    for language, sentence in SENTENCES.items():
        assert learnt.guess(sentence).language == language


def test_a_language_of_ones_own() -> None:
    # An invented language with its own syllables, known from labels alone.
    rng = random.Random(0)
    syllables = ["zyx", "qor", "wux", "jii", "vykk", "xaz", "qeq"]

    def text(n: int) -> str:
        return " ".join("".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(n))

    learnt = learn_from([document(n, text(150), "x-own") for n in range(6)])
    assert learnt.guess(text(40)).language == "x-own"
    assert learnt.guess(SENTENCES["en"]).language == "en"


def test_a_label_with_too_little_text_teaches_nothing() -> None:
    assert learn_from([document(0, SENTENCES["pl"], "x-few")]).languages == seed_identifier().languages


def test_gibberish_surprises(paragraphs: dict[str, list[str]]) -> None:
    rng = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    junk = " ".join("".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(200))
    usual = usage([document(n, b, "en") for n, b in enumerate(paragraphs["en"][:40])])
    unread = max(-usual.scores(b)["en"] for b in paragraphs["en"][40:])
    assert -usual.scores(junk)["en"] > 1.15 * unread
