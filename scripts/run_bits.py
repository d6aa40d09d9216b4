"""Whether two run folders hold the same bits: ``run_bits.py NAME OLD NEW``. Exit 1 where they differ."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from safetensors.numpy import load

CLOCK = {"seconds", "peak_rss_bytes", "time", "seconds_per_round", "started", "created", "folder"}
"""Keys that tell of a clock, a machine or a place and not of the federation."""
CODE = {"adapter/README.md", "report.html", "federation.toml"}
"""Files with words and paths: there must be one on both sides, of any content."""


def without_clock(value: object) -> object:
    """JSON without what depends on the clock or on where the checkout lies."""
    if isinstance(value, dict):
        return {
            key: without_clock(part) for key, part in value.items() if key not in CLOCK and key != "notices"
        }
    if isinstance(value, list):
        return [without_clock(part) for part in value]
    return value


def bits(run: Path) -> Iterator[tuple[str, str]]:
    """Every file of a run folder and the hash of what must be the same in it."""
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        name = path.relative_to(run).as_posix()
        if name.startswith(("network/", "logs/")):
            continue
        yield name, "" if name in CODE else hashlib.sha256(content(path)).hexdigest()


def content(path: Path) -> bytes:
    """What must be the same in a file."""
    data = path.read_bytes()
    if path.suffix == ".json":
        return json.dumps(without_clock(json.loads(data)), sort_keys=True).encode()
    if path.suffix == ".jsonl":
        return json.dumps(
            [without_clock(json.loads(row)) for row in data.splitlines()], sort_keys=True
        ).encode()
    if path.suffix == ".feedback":  # magic, digest, tensors; the answer among them tells its seconds
        return b"".join(
            k.encode() + v.tobytes() for k, v in sorted(load(data[38:]).items()) if k != "envelope"
        )
    return data


def main(name: str, old: Path, new: Path) -> int:
    """Print a line, and what differs."""
    before, after = dict(bits(old)), dict(bits(new))
    adapter = json.loads((new / "summary.json").read_text(encoding="utf-8"))["adapter_sha256"]
    different = sorted(n for n in {*before, *after} if before.get(n) != after.get(n))
    verdict = f"DIFFERS: {', '.join(different)}" if different else "same"
    print(f"{name:18} {adapter[:16]}  {len(after)} files  {verdict}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
