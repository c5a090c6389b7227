"""Which language is it? A naive Bayes classifier over character n-grams.

Characters are enough to tell languages apart (Cavnar & Trenkle 1994, "N-Gram-Based Text
Categorization"; naive Bayes as in Lui & Baldwin 2012, "langid.py"). The profiles come from the
Universal Declaration of Human Rights (public domain, in udhr.json: 38 languages), about the same amount
for each. That matters: a profile that has read a hundred times more text than its neighbours knows rarer
n-grams and draws their text to itself (with all of the corpus' German in the profile, Dutch became
German). So the corpus teaches only what the sample lacks: a language that is not in it, or hardly (its
Telugu is two sentences), is learnt from labelled text, up to the same amount. A person's own language
needs no code, and a wrong label can't move a profile that is there.

How *usual* a text is within its language is another question, and there more text is better: `usage`
reads 60 documents of each language, drawn from all its sources.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ayllu.text.document import Document, words
from ayllu.text.mix import order_of

BUCKETS = 1 << 16  # n-grams of one to three characters, hashed
SMOOTHING = 0.02  # pseudo-count of a bucket: small, since a language uses few of all n-grams
READ_CHARACTERS = 8_000  # of a document: more does not change the verdict
SAMPLE_CHARACTERS = 4_000  # of a language that the declaration's sample lacks
PER_DOCUMENT = 1_000  # characters of each document that go into it
FEWEST_CHARACTERS = 1_000  # a sample shorter than this lacks the language; a label with less teaches nothing
USAGE_DOCUMENTS = 60  # per language, in the order of a hash: from all its sources
ENOUGH_LETTERS = 20  # with fewer, nothing can be said
DENSE = ("zh", "ja", "ko")  # scripts in which a few hundred characters say as much
UNDETERMINED = "und"  # ISO 639-3: undetermined


@dataclass(frozen=True)
class Guess:
    """The most likely language, and how clear it is."""

    language: str  # or "und"
    margin: float  # nats per n-gram between the first and the second language
    surprise: float  # nats per n-gram under the first: high for gibberish


class Identifier:
    """Profiles of languages. `counts_LB` are n-gram counts per language and bucket."""

    def __init__(self, languages: list[str], counts_LB: NDArray[np.float64]) -> None:
        self.languages = languages
        total_L = counts_LB.sum(1, keepdims=True)
        log_LB = np.log((counts_LB + SMOOTHING) / (total_L + SMOOTHING * BUCKETS))
        self.counts_LB, self.log_BL = counts_LB, np.ascontiguousarray(log_LB.T.astype(np.float32))

    def scores(self, text: str) -> dict[str, float]:
        """Mean log-likelihood per n-gram, in nats, of each language. Empty when there are too few letters."""
        grams = ngrams(text)
        if len(grams) == 0:
            return {}
        bucket, times = np.unique(grams, return_counts=True)
        score_L = times.astype(np.float32) @ self.log_BL[bucket] / len(grams)
        return dict(zip(self.languages, score_L.tolist(), strict=True))

    def guess(self, text: str) -> Guess:
        """The language of `text`; `und` for too few letters."""
        order = sorted(((score, language) for language, score in self.scores(text).items()), reverse=True)
        if not order:
            return Guess(UNDETERMINED, 0.0, 0.0)
        margin = order[0][0] - order[1][0] if len(order) > 1 else 0.0
        return Guess(order[0][1], round(margin, 4), round(-order[0][0], 4))

    def learn(self, samples: dict[str, list[str]]) -> Identifier:
        """A new identifier that has also read `samples` (texts per language; new languages are added)."""
        languages = self.languages + sorted(set(samples) - set(self.languages))
        counts_LB = np.zeros((len(languages), BUCKETS))
        counts_LB[: len(self.languages)] = self.counts_LB
        for language, texts in samples.items():
            counts_LB[languages.index(language)] += count(texts)
        return Identifier(languages, counts_LB)


def ngrams(text: str) -> NDArray[np.int64]:
    """Hash buckets of the one- to three-character grams of `text`'s words (one space between words).

    Digits and signs are left out: they are the same in every language.
    """
    line = " ".join(word for word in words(text[:READ_CHARACTERS]) if not word.isnumeric())
    if len(line) < ENOUGH_LETTERS:
        return np.zeros(0, np.int64)
    code = np.frombuffer(f" {line} ".encode("utf-32-le"), np.uint32).astype(np.uint64)
    one = code * np.uint64(0x9E3779B97F4A7C15)
    two = (one[:-1] ^ (code[1:] + np.uint64(1))) * np.uint64(0xBF58476D1CE4E5B9)
    three = (two[:-1] ^ (code[2:] + np.uint64(2))) * np.uint64(0x94D049BB133111EB)
    return (np.concatenate([one, two, three]) >> np.uint64(48)).astype(np.int64)


def count(texts: Iterable[str]) -> NDArray[np.float64]:
    """n-gram counts per bucket."""
    counts_B = np.zeros(BUCKETS)
    for text in texts:
        counts_B += np.bincount(ngrams(text), minlength=BUCKETS)
    return counts_B


@functools.cache
def declaration() -> dict[str, str]:
    """A passage of the Universal Declaration of Human Rights per language."""
    return json.loads((Path(__file__).parent / "udhr.json").read_text(encoding="utf-8"))


@functools.cache
def seed_identifier() -> Identifier:
    """The identifier that has read only the declaration."""
    sample = declaration()
    return Identifier(list(sample), np.stack([count([text]) for text in sample.values()]))


def learn_from(documents: Iterable[Document]) -> Identifier:
    """The declaration's profiles, and those that it lacks from labelled documents (see the file's top)."""
    seed = seed_identifier()
    known = {language for language, text in declaration().items() if len(text) >= FEWEST_CHARACTERS}
    known |= {language for language in seed.languages if language in DENSE}
    samples: dict[str, str] = {}
    for document in documents:
        language = document.language
        if not language or language == UNDETERMINED or language in known:
            continue
        if language in seed.languages and seed.guess(document.text).language != language:
            continue
        room = SAMPLE_CHARACTERS - len(samples.get(language, ""))
        if room <= 0:
            continue
        samples[language] = samples.get(language, "") + document.text[: min(room, PER_DOCUMENT)] + "\n"
    return seed.learn({name: [text] for name, text in samples.items() if len(text) >= FEWEST_CHARACTERS})


def usage(documents: Iterable[Document]) -> Identifier:
    """What is usual in each language of the corpus: profiles of its text, for `Guess.surprise`."""
    samples: dict[str, list[str]] = {}
    for document in sorted(documents, key=lambda d: order_of(d.id, 0)):
        texts = samples.setdefault(document.language, [])
        if len(texts) < USAGE_DOCUMENTS:
            texts.append(document.text)
    return seed_identifier().learn(samples)
