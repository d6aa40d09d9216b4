"""``make bench-bits``: the adapter of examples/own-data in both modes, here and on played processors.

Writes benchmarks/results/bits.json, a row at a time (rows that are there are not run again), and
results/bits.md. A played processor is this one with other answers to CPUID: tests/bits/processor.c.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headwater.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
ROWS, TABLE = ROOT / "benchmarks/results/bits.json", ROOT / "results/bits.md"
PLAYED = ("zen2", "zen4", "haswell", "skylake-x", "nehalem")
REPORTED = {
    "AMD EPYC (Zen 4), AVX-512": {
        "machine": "fe472c9f415ec40b9782edeeb26493361998b8ec282d7d1518e150a5fc16c336",
        "portable": "20bbfbfcba1660eafc7c33022be004077b25638413dc6bf32a63b9f0d10cadcb",
    },
}
"""Of another machine, with commit 6d8f796: there the variables of three libraries were set by hand."""
CHANGES = ("baselines.alone=false", "codec.up.density_over=tensor", "codec.up.scale_bits=24")
"""The codec as it was when the first rows were measured: hashes of other processors stay comparable."""
HEAD = """# The bits of one federation on different processors

`make bench-bits`: `headwater simulate examples/own-data/federation.toml --set baselines.alone=false --set
codec.up.density_over=tensor --set codec.up.scale_bits=24`, without and with `--set federation.bits=portable`.
*Played* is this processor with the other's answers to CPUID (`tests/bits/processor.c`): what libraries choose
by it is chosen as there. `machine` on a played Zen 2 and a played Zen 4 has the bits of real AMD processors
(family 25, model 1: Zen 3, no AVX-512, where nobody can play another).

"""


def processor() -> str:
    """This one's name, family and model."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    return f"{found['model name']}, family {found['cpu family']}, model {found['model']}"


def measured(bits: str, around: Mapping[str, str]) -> dict[str, Any]:
    """One run: its adapter, and CPU seconds of it with what it started."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        command = [
            sys.executable,
            "-m",
            "headwater",
            "simulate",
            "examples/own-data/federation.toml",
            "--quiet",
        ]
        for change in (*CHANGES, f"federation.bits={bits}"):
            command += ["--set", change]
        command += ["--out", str(out)]
        subprocess.run(command, cwd=ROOT, env={**os.environ, **around}, check=True)
        summary = json.loads((out / "summary.json").read_text())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"adapter_sha256": summary["adapter_sha256"], "cpu_s": round(seconds, 1)}


def main() -> None:
    """Run what is missing, and write the table."""
    rows: dict[str, dict[str, Any]] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        library = f"{scratch}/processor.so"
        source = ROOT / "tests/bits/processor.c"
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
        for name in ("", *PLAYED):
            around = {"PLAYED_PROCESSOR": name, "LD_PRELOAD": library} if name else {}
            asked = subprocess.run(["true"], env={**os.environ, **around}, capture_output=True, check=True)
            if asked.stderr:
                print(f"{name}: this processor lets nobody answer CPUID in its place")
                continue
            for bits in ("machine", "portable"):
                key = f"{processor()}{f', played {name}' if name else ''}"
                if bits not in rows.setdefault(key, {}):
                    rows[key][bits] = measured(bits, around)
                    write_atomically(ROWS, (json.dumps(rows, indent=1) + "\n").encode())
            write_atomically(TABLE, table(rows).encode())


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """results/bits.md."""
    lines = ["| processor | `machine` | `portable` | CPU time |", "|---|---|---|---|"]
    whole = {name: row for name, row in rows.items() if len(row) == 2}  # another process may be at the rest
    for name, row in whole.items():
        shown = [f"`{row[bits]['adapter_sha256'][:16]}`" for bits in ("machine", "portable")]
        ratio = row["portable"]["cpu_s"] / row["machine"]["cpu_s"]
        lines.append(f"| {name} | {' | '.join(shown)} | ×{ratio:.2f} |")
    for name, known in REPORTED.items():
        lines.append(
            f"| {name}, a real one | `{known['machine'][:16]}` | `{known['portable'][:16]}` | about ×2 |"
        )
    one = {row["portable"]["adapter_sha256"] for row in whole.values()}
    (digest,) = one | {known["portable"] for known in REPORTED.values()}
    return HEAD + "\n".join(lines) + f"\n\nThe whole portable hash is `{digest}`.\n{platform.platform()}.\n"


if __name__ == "__main__":
    main()
