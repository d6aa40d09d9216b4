"""Eight adapters of eight tasks, merged by every rule: ``python benchmarks/tasks.py``.

Tasks made from the three corpora; the head of each is the base's embeddings of what its classes are, and
stands still. An adapter learns one task, and *multitask* all. Every rule of ``headwater merge`` that needs
no rows merges the eight into one, as it is and with the scale, of four, that is best on rows that are in no
other set. A score is the accuracy as a part of that of the task's own adapter. One thread. Writes
``benchmarks/results/tasks.json`` and a picture.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from last_layers import CACHE, Described, Judge, Texts, frozen, minilm, train
from picture import bars

from headwater.errors import ConfigError
from headwater.merging.offline.folder import merge_folders
from headwater.merging.offline.peft_folder import PeftFolder
from headwater.merging.offline.recipe import Recipe
from headwater.merging.offline.rule import DataRule
from headwater.merging.offline.rules.table import RULES

RESULTS = Path(__file__).parent / "results" / "tasks.json"
SIZES = {"train": 600, "choose": 80, "test": 300}
EPOCHS = 4
SCALES = (0.5, 1.0, 2.0, 4.0)
"""Of the mean; of a rule that is a sum by nature, an eighth of these."""
YEARS, LENGTHS = (1845, 1890, 1950), (10, 17, 24)
GLOSSES = (
    *("act", "animal", "artifact", "attribute", "cognition", "communication"),
    *("group", "location", "person", "plant", "state", "substance"),
)
CLASSES = {
    "polarity of products": ("a bad product that does not work", "a good product that works well"),
    "polarity of films": ("a bad film, boring and weak", "a good film, moving and clever"),
    "polarity of tweets": ("a tweet of somebody unhappy", "a tweet of somebody happy"),
    "domain": ("a review of a product", "a review of a film", "an article of a newspaper", "a tweet"),
    "gloss": tuple(f"a kind of {label}" for label in GLOSSES),
    "era": tuple(f"a speech of the year {year}" for year in (1810, 1870, 1920, 1980)),
    "length": ("a few words", "a short sentence", "a sentence of some length", "a very long sentence"),
    "number": ("a sentence in words", "a sentence with a number, such as 1,250"),
}
Rows = list[tuple[str, int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="keep the adapters here, and take those that are there")
    parser.add_argument("--small", action="store_true", help="few rows and one rule, written nowhere")
    parser.add_argument(
        "--rules",
        nargs="+",
        metavar="RULE",
        help="these alone, in place of their rows of the file that is there",
    )
    options = parser.parse_args()
    sizes = {"train": 32, "choose": 8, "test": 16} if options.small else SIZES
    rules = options.rules or (
        ["mean", "ties"]
        if options.small
        else [n for n, rule in RULES.items() if not issubclass(rule, DataRule)]
    )
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        judge, tasks = prepared(work, sizes, together=not options.rules)
        result = measured(judge, tasks, work, rules)
    if options.small:
        return
    if options.rules:
        result = beside_others(json.loads(RESULTS.read_text()), result)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    rows = sorted(result["rules"], key=lambda row: -row["best"]["score"])
    shown = {row["rule"]: [100 * row["best"]["score"]] for row in rows}
    RESULTS.with_suffix(".svg").write_text(bars("Eight tasks merged: % of the tasks' own adapters", shown))


def beside_others(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """The rows that were there, with these rules' in place of their own.

    Raises:
        SystemExit: the adapters are others: their scores differ, and rows of two sets are no table.
    """
    if found["tasks"] != before["tasks"] or found["beside"][0] != before["beside"][0]:
        raise SystemExit(f"the adapters are not those of {RESULTS}: {found['tasks']}, {found['beside']}")
    new = {row["rule"] for row in found["rules"]}
    return before | {"rules": [row for row in before["rules"] if row["rule"] not in new] + found["rules"]}


def prepared(work: Path, sizes: Mapping[str, int], *, together: bool) -> tuple[Judge, list[str]]:
    """Heads, features and trained adapters; what is in ``work`` is taken from there.

    Args:
        work: the folder.
        sizes: rows of each part of a task.
        together: whether one adapter learns all tasks, too.
    """
    base = minilm()
    data = {}
    for name, rows in _sets(sizes):
        kept = work / f"{name}.pt"
        if not kept.exists():
            torch.save(vars(frozen(base, *zip(*rows, strict=True))), kept.with_suffix(".part"))
            kept.with_suffix(".part").rename(kept)
        data[name] = Texts(**torch.load(kept))
    tasks = [name.removeprefix("train ") for name in data if name.startswith("train ")]
    heads = {task: Described(base, CLASSES[task]) for task in tasks}
    texts = {task: [data[f"train {task}"]] for task in tasks}
    own = {task: [heads[task]] for task in tasks}
    train(work, texts, own, EPOCHS)
    if together:
        everything = {"multitask": [some for task in tasks for some in texts[task]]}
        train(work, everything, {"multitask": [heads[task] for task in tasks]}, EPOCHS)
    return Judge(base, data, {f"{part} {task}": heads[task] for part in sizes for task in tasks}), tasks


def measured(
    judge: Judge, tasks: list[str], work: Path, names: list[str]
) -> dict[str, list[dict[str, object]]]:
    test, choose = ([f"{part} {task}" for task in tasks] for part in ("test", "choose"))
    alone = [judge.accuracy(PeftFolder.open(work / task), [f"test {task}"]) for task in tasks]

    def scored(adapter: PeftFolder | None) -> dict[str, object]:
        found = list(judge.accuracies(adapter, test).values())
        score = statistics.mean(a / b for a, b in zip(found, alone, strict=True))
        return {"score": round(score, 4), "tasks": [round(a, 4) for a in found]}

    rows, out = [], work / "merged"
    print("own adapters", dict(zip(tasks, alone, strict=True)), flush=True)
    for name in names:
        merged: dict[float, tuple[float, dict[str, object] | None]] = {}
        try:
            rule = RULES[name]()
            for scale in SCALES:
                recipe = Recipe(rule, scale=scale if rule.weighs else scale / len(tasks))
                merge_folders([work / task for task in tasks], out, recipe, overwrite=True)
                adapter = PeftFolder.open(out)
                merged[scale] = (judge.accuracy(adapter, choose), scored(adapter) if scale == 1.0 else None)
        except ConfigError as error:
            print(f"{name} is left out: {error}", flush=True)
            continue
        best = max(SCALES, key=lambda scale: merged[scale][0])
        if best != 1.0:
            recipe = Recipe(rule, scale=best if rule.weighs else best / len(tasks))
            merge_folders([work / task for task in tasks], out, recipe, overwrite=True)
        row = {"rule": name, "as it is": merged[1.0][1], "scale": best}
        row["best"] = row["as it is"] if best == 1.0 else scored(PeftFolder.open(out))
        rows.append(row)
        print(json.dumps(row), flush=True)
    return {
        "machine": [
            {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__}
        ],
        "tasks": [
            {"task": task, "classes": len(CLASSES[task]), "own adapter": round(a, 4)}
            for task, a in zip(tasks, alone, strict=True)
        ],
        "beside": [
            {"what": "base", **scored(None)},
            *(
                {"what": name, **scored(PeftFolder.open(work / name))}
                for name in ("multitask",)
                if (work / name).is_dir()
            ),
        ],
        "rules": rows,
    }


def _sets(sizes: Mapping[str, int]) -> Iterator[tuple[str, Rows]]:
    """``train TASK``, ``choose TASK`` and ``test TASK``: no row is in two of them."""
    draw = np.random.default_rng(1)
    for task, rows in _tasks(draw).items():
        order, at = draw.permutation(len(rows)), 0
        for part, size in sizes.items():
            yield f"{part} {task}", [rows[i] for i in order[at : at + size]]
            at += size


def _tasks(draw: np.random.Generator) -> Mapping[str, Rows]:
    sentiment = [json.loads(line) for line in _lines("sentiment/train.jsonl", "sentiment/test.jsonl")]
    glosses = [json.loads(line) for line in _lines("glosses/train.jsonl", "glosses/test.jsonl")]
    speeches = [
        json.loads(line)
        for path in sorted((CACHE / "presidents" / "train").glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    sentences = [(text, int(row["year"])) for row in speeches for text in _sentences(row["text"], draw)]
    sentences = [sentences[i] for i in draw.permutation(len(sentences))]
    domains = sorted({row["domain"] for row in sentiment})

    def polarity(domain: str) -> Rows:
        return [(r["text"], int(r["label"] == "positive")) for r in sentiment if r["domain"] == domain]

    others = [(row["text"], 0) for row in [*glosses, *sentiment[:3000]]]
    mixed = [(others + sentences)[i][0] for i in draw.permutation(len(others) + len(sentences))]
    numbers = [(text, int(any(c.isdigit() for c in text))) for text, _ in sentences]
    with_one = [row for row in numbers if row[1]]
    by_domain = {d: [r["text"] for r in sentiment if r["domain"] == d][:400] for d in domains}
    return {
        "polarity of products": polarity("amazon"),
        "polarity of films": polarity("movies"),
        "polarity of tweets": polarity("tweets"),
        "domain": [(text, number) for number, d in enumerate(domains) for text in by_domain[d]],
        "gloss": [(row["text"], GLOSSES.index(row["label"])) for row in glosses],
        "era": [(text, int(np.searchsorted(YEARS, year))) for text, year in sentences],
        "length": [(text, int(np.searchsorted(LENGTHS, len(text.split())))) for text in mixed],
        "number": with_one + [row for row in numbers if not row[1]][: len(with_one)],
    }


def _lines(*names: str) -> Iterator[str]:
    for name in names:
        yield from (CACHE / name).read_text(encoding="utf-8").splitlines()


def _sentences(text: str, draw: np.random.Generator) -> list[str]:
    """Some of a speech's, of 8 to 30 words."""
    found = [s for s in re.split(r"(?<=[.!?])\s+", text) if 8 <= len(s.split()) <= 30]
    return [found[i] for i in draw.permutation(len(found))[:60]]


if __name__ == "__main__":
    main()
