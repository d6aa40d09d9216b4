"""Instructions of six kinds for demos, tests and benchmarks: :func:`build_instructions`.

Each kind has prompts and answers from a source that people wrote, for another purpose:

========== ==================================================== ================================
kind       asks for                                             source
========== ==================================================== ================================
question   a fact                                               ChatterBot's corpus (BSD)
definition what a noun means                                    WordNet 3.0
usage      a sentence with a verb                               WordNet 3.0
opposite   an adjective's antonym                               WordNet 3.0
category   what a noun is, of six                               WordNet 3.0
sentiment  whether a sentence is positive or negative           VADER (MIT), third parties' texts
========== ==================================================== ================================

Rows are taken in the order of SHA-256 over their own content: the same archives give the same bytes.
"""

from __future__ import annotations

import re
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from headwater.data.archives import Record, deb_member, rank_of, write_records, zip_read
from headwater.data.corpora import LEXICOGRAPHER, rated_sentences

Row = tuple[str, str, str]
"""What must not be divided between training and test, the prompt, and the answer."""

MOST_PROMPT, MOST_ANSWER = 200, 120
"""Characters; longer rows are left out."""


def build_instructions(
    wordnet: Path,
    chatterbot: Path,
    vader: Path,
    out: Path,
    *,
    train_per_kind: int = 240,
    test_per_kind: int = 60,
) -> None:
    """Write ``train.jsonl`` and ``test.jsonl``, as many rows of each kind. Columns: prompt, answer, kind.

    Args:
        wordnet: Debian's package ``wordnet-base``.
        chatterbot: the wheel of ``chatterbot-corpus``.
        vader: the source archive of ``vadersentiment``.
        out: an empty folder.
        train_per_kind: rows of each kind at most.
        test_per_kind: the same of those held out.
    """
    nouns, verbs, adjectives = (WordNet.read(wordnet, part) for part in ("noun", "verb", "adj"))
    kinds = {
        "question": _questions(chatterbot),
        "definition": _definitions(nouns),
        "usage": _usages(verbs),
        "opposite": _opposites(adjectives),
        "category": _categories(nouns),
        "sentiment": _sentiments(vader),
    }
    train: list[Record] = []
    test: list[Record] = []
    for kind, rows in kinds.items():
        held, kept = _divided(kind, rows, test_per_kind)
        test += held[:test_per_kind]
        train += kept[:train_per_kind]
    write_records(out / "train.jsonl", sorted(train, key=lambda record: rank_of(record["prompt"])))
    write_records(out / "test.jsonl", sorted(test, key=lambda record: rank_of(record["prompt"])))


def _divided(kind: str, rows: Iterable[Row], least: int) -> tuple[list[Record], list[Record]]:
    """Whole documents with at least so many records, to be held out, and the others' records."""
    documents: dict[str, list[Record]] = defaultdict(list)
    seen: set[str] = set()
    for document, prompt, answer in rows:
        if len(prompt) <= MOST_PROMPT and 0 < len(answer) <= MOST_ANSWER and prompt.lower() not in seen:
            seen.add(prompt.lower())
            documents[document].append({"prompt": prompt, "answer": answer, "kind": kind})
    held: list[Record] = []
    kept: list[Record] = []
    for document in sorted(documents, key=lambda name: rank_of(kind, name)):
        (held if len(held) < least else kept).extend(documents[document])
    return held, kept


# --- kinds ----------------------------------------------------------------------------------------

_TOPICS = ["computers", "history", "literature", "movies", "science", "sports", "trivia"]


def _questions(wheel: Path) -> Iterator[Row]:
    """The first answer to each question of the factual topics."""
    import yaml

    with zipfile.ZipFile(wheel) as archive:
        for topic in _TOPICS:
            content = zip_read(archive, wheel, f"chatterbot_corpus/data/english/{topic}.yml")
            for said in yaml.safe_load(content)["conversations"]:
                prompt, answer = (" ".join(str(turn).split()) for turn in said[:2])
                if not prompt.isupper():  # fragments
                    yield prompt.lower(), prompt, answer


def _definitions(nouns: WordNet) -> Iterator[Row]:
    for word, synset in nouns.common():
        if not _is_for_categories(word):
            yield word, f'What does the noun "{word}" mean?', synset.meaning


def _usages(verbs: WordNet) -> Iterator[Row]:
    for word, synset in verbs.common():
        example = next((e for e in synset.examples if re.search(rf"\b{re.escape(word)}", e)), "")
        yield word, f'Use the verb "{word}" in a sentence.', example


def _opposites(adjectives: WordNet) -> Iterator[Row]:
    for word, synset in adjectives.common():
        for symbol, offset, source, target in synset.pointers:
            if symbol == "!" and synset.words[source - 1] == word:  # an antonym of this very word
                other = adjectives.synsets[offset].words[target - 1]
                first, second = sorted((word, other))
                yield f"{first} {second}", f'What is the opposite of "{word}"?', other


_CATEGORIES = ["act", "animal", "artifact", "communication", "person", "substance"]


def _categories(nouns: WordNet) -> Iterator[Row]:
    options = ", ".join(_CATEGORIES)
    for word, synset in nouns.common():
        category = LEXICOGRAPHER.get(synset.lexicographer, "")
        if category in _CATEGORIES and _is_for_categories(word):
            yield word, f'Which of these is "{word}": {options}?', category


def _is_for_categories(noun: str) -> bool:
    """Half of the nouns: no word is in both kinds, where its definition would tell its category."""
    return int(rank_of("category", noun)[0], 16) < 8


def _sentiments(archive: Path) -> Iterator[Row]:
    """Sentences whose mean score is at least 1 away from 0."""
    for domain, sentences in rated_sentences(archive):
        for document, score, text in sentences:
            if abs(score) >= 1:
                prompt = f"Is this positive or negative? {text}"
                yield f"{domain} {document}", prompt, "positive" if score > 0 else "negative"


# --- WordNet --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Synset:
    """One meaning, as wndb(5WN) describes its line.

    Args:
        lexicographer: number of the file that it was written in.
        words: that have it.
        pointers: symbol, offset of the other synset, and the numbers, from 1, of the words that it holds for
            (0: of all).
        meaning: the gloss before the first example.
        examples: the quoted ones.
    """

    lexicographer: int
    words: tuple[str, ...]
    pointers: tuple[tuple[str, int, int, int], ...]
    meaning: str
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WordNet:
    """A part of speech.

    Args:
        synsets: by their offset.
        index: lines of its index.
    """

    synsets: Mapping[int, Synset]
    index: Sequence[str]

    @staticmethod
    def read(package: Path, part: str) -> WordNet:
        """``noun``, ``verb`` or ``adj`` of Debian's package."""
        data, index = (
            deb_member(package, f"usr/share/wordnet/{name}.{part}").decode("latin-1").split("\n")
            for name in ("data", "index")
        )
        found = {}
        for line in data:
            if line and not line.startswith("  "):  # the licence at the head of the file
                found[int(line[:8])] = _synset(line)
        return WordNet(found, [line for line in index if line and not line.startswith("  ")])

    def common(self) -> Iterator[tuple[str, Synset]]:
        """Words of small letters that WordNet's tagged texts have, with their most frequent meaning."""
        for line in self.index:
            fields = line.split()
            pointers = int(fields[3])
            word, tagged, first = fields[0], int(fields[5 + pointers]), int(fields[6 + pointers])
            if tagged and word.isascii() and word.isalpha() and word in self.synsets[first].words:
                yield word, self.synsets[first]


def _synset(line: str) -> Synset:
    head, _, gloss = line.partition(" | ")
    fields = head.split()
    count = int(fields[3], 16)
    words = tuple(re.sub(r"\(.*\)$", "", word).replace("_", " ") for word in fields[4 : 4 + 2 * count : 2])
    start = 5 + 2 * count
    rows = [fields[i : i + 4] for i in range(start, start + 4 * int(fields[start - 1]), 4)]
    pointers = tuple((kind, int(at), int(ends[:2], 16), int(ends[2:], 16)) for kind, at, _, ends in rows)
    meaning = re.split(r';\s*"', gloss, maxsplit=1)[0].strip()
    return Synset(int(fields[1]), words, pointers, meaning, tuple(re.findall(r'"([^"]+)"', gloss)))
