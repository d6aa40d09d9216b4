"""``make fuzz``: atheris on every reader of strangers' bytes, one after the other.

``fuzz.py [--seconds N] [--keep] [NAME …]`` gives each family of tests/fuzz/decoders.py its share of time
and a process of its own, prints what it found, and writes results/fuzz.md with the latest turn of each. Input
that is neither read nor refused ends its family: it is shown, and the exit code is 1. ``--keep`` adds the
shortest inputs that reach new code to tests/fuzz/corpus, where ``make test`` reads them again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import atheris

from headwater.process_memory import status_bytes

if TYPE_CHECKING:
    from tests.fuzz.decoders import Family

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "tests/fuzz/corpus"
ROWS, TABLE = ROOT / "benchmarks/results/fuzz.json", ROOT / "results/fuzz.md"
LONGEST, KEPT, KEPT_BYTES = 4096, 12, 300
SLOW_S, MEMORY_MB = 60, 2048  # seconds of wall time: a busy machine may take a process away for ten
HEAD = """# What fuzzing found

`make fuzz`: [atheris](https://github.com/google/atheris) on every reader of strangers' bytes
(`tests/fuzz/decoders.py`), each in a process of its own. *Slowest* is CPU time. *More memory* is the most
that the process held, beyond what it held after 256 inputs, with the fuzzer's own.

"""


def main() -> int:
    """Fuzz the families that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--seconds", type=int, default=600, help="for all together")
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    with atheris.instrument_imports(include=["headwater"]):
        from tests.fuzz.decoders import FAMILIES

    names = options.names or list(FAMILIES)
    share = max(1, options.seconds // len(names))
    rows = {name: turn(FAMILIES[name], share, options.keep) for name in names}
    earlier = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    latest = {name: {**earlier, **rows}[name] for name in FAMILIES if name in {*earlier, *rows}}
    ROWS.write_text(json.dumps(latest, indent=1) + "\n")
    TABLE.write_text(table(latest), encoding="utf-8")
    found = [name for name, row in rows.items() if row["found"]]
    total = sum(row["inputs"] for row in rows.values())
    print(f"{total:,} inputs; families with a find: {', '.join(found) or 'none'}")
    return 1 if found else 0


def turn(family: Family, seconds: int, keep: bool) -> dict[str, Any]:
    """One family in a process of its own, which has all that was imported here."""
    with tempfile.TemporaryDirectory() as scratch:
        began = time.monotonic()
        sys.stdout.flush()
        if not (child := os.fork()):
            os.chdir(scratch)
            said = os.open("said.txt", os.O_WRONLY | os.O_CREAT)
            for stream in (1, 2):  # atheris tells of an exception on the one, libFuzzer on the other
                os.dup2(said, stream)
            try:
                fuzz(family, Path(scratch), seconds)
            finally:
                os._exit(1)  # and leave the folder to the parent
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        counted = Path(scratch, "counted.json")
        row: dict[str, Any] = json.loads(counted.read_text()) if counted.exists() else {"inputs": 0}
        row |= {"seconds": round(time.monotonic() - began), "found": ""}
        if code:
            row["found"] = "\n".join(Path(scratch, "said.txt").read_text(errors="replace").splitlines()[-40:])
            print(row["found"])
            for path in Path(scratch).glob("*-*"):
                if path.name.startswith(("crash-", "timeout-", "oom-", "slow-unit-")):
                    print(f"{family.name}: {path.name}: {path.read_bytes()[:2000].hex()}")
        elif keep:
            keep_some(family.name, Path(scratch, "corpus"))
    shown = {key: value for key, value in row.items() if key != "found"}
    print(f"{family.name:24} {json.dumps(shown)}", flush=True)
    return row


def fuzz(family: Family, folder: Path, seconds: int) -> None:
    """In the child, until the time is over: it does not return."""
    corpus, counted = folder / "corpus", folder / "counted.json"
    corpus.mkdir()
    for data in [*family.seeds, *kept(family.name)]:
        (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
        family.accepts(data)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    base, began = 0, time.monotonic()
    row: dict[str, Any] = {"inputs": 0, "read": 0, "slowest_ms": 0.0, "slowest_bytes": 0}

    def one(data: bytes) -> None:
        nonlocal base
        start = time.process_time()
        row["read"] += family.accepts(data)
        took_ms = 1000 * (time.process_time() - start)
        row["inputs"] += 1
        if took_ms > row["slowest_ms"]:
            row["slowest_ms"], row["slowest_bytes"] = round(took_ms, 2), len(data)
        if row["inputs"] % 256 == 0:
            base = base or status_bytes("VmHWM")  # now the fuzzer has what it needs itself
            more = status_bytes("VmHWM") - base
            rate = row["inputs"] / (time.monotonic() - began)
            counted.write_text(json.dumps({**row, "more_mb": round(more / 1e6, 1), "per_s": round(rate)}))

    longest = max(LONGEST, *(len(data) + 64 for data in family.seeds))
    limits = [f"-max_len={longest}", f"-timeout={SLOW_S}", f"-rss_limit_mb={MEMORY_MB}"]
    atheris.Setup([sys.argv[0], *limits, f"-max_total_time={seconds}", "-verbosity=0", str(corpus)], one)
    atheris.Fuzz()


def kept(name: str) -> list[bytes]:
    """The family's corpus: an input a line, in hex."""
    path = CORPUS / f"{name}.txt"
    return [bytes.fromhex(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep_some(name: str, corpus: Path) -> None:
    """Add the shortest inputs that are new, as far as there is room."""
    before = kept(name)
    found = {path.read_bytes() for path in corpus.iterdir()} - set(before)
    short = sorted((data for data in found if len(data) <= KEPT_BYTES), key=lambda data: (len(data), data))
    room = KEPT - len(before)
    chosen = short[:: max(1, len(short) // room)][:room] if room > 0 and short else []
    CORPUS.mkdir(exist_ok=True)
    lines = [data.hex() for data in [*before, *chosen]]
    (CORPUS / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def table(rows: dict[str, dict[str, Any]]) -> str:
    """results/fuzz.md."""
    lines: Sequence[str] = [
        "| reader | inputs | of which read | a second | slowest | its bytes | more memory | found |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        cells = [f"{row['inputs']:,}", f"{row.get('read', 0):,}", f"{row.get('per_s', 0):,}"]
        cells += [f"{row.get('slowest_ms', 0):.1f} ms", f"{row.get('slowest_bytes', 0):,}"]
        cells += [f"{row.get('more_mb', 0):.1f} MB", "a defect" if row["found"] else "nothing"]
        lines = [*lines, f"| {name} | {' | '.join(cells)} |"]
    total, seconds = sum(row["inputs"] for row in rows.values()), sum(row["seconds"] for row in rows.values())
    last = f"{total:,} inputs in {seconds:,} s, imports included; Python {platform.python_version()}."
    return HEAD + "\n".join(lines) + f"\n\n{last}\n"


if __name__ == "__main__":
    sys.exit(main())
