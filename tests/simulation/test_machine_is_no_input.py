"""Clock, time zone, locale, threads and environment of a process change no bit of an adapter."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import tomli_w

from tests.support.chat_templates import tiny_chat_llama
from tests.support.runs import write_jsonl

PLAYED = """
import datetime, sys
day = sys.argv.pop(1)
import transformers.utils.chat_template_utils as module
class Played(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromisoformat(day)
module.datetime = Played
import locale
locale.setlocale(locale.LC_ALL, "")
from headwater.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
MACHINES = [
    ("2026-11-29T12:00:00", {}),
    (
        "2027-01-02T23:59:59",
        {
            "TZ": "Pacific/Kiritimati",
            "LC_ALL": "C.UTF-8",
            "LANG": "de_DE.UTF-8",
            "PYTHONHASHSEED": "7",
            "OMP_NUM_THREADS": "3",
            "MKL_NUM_THREADS": "2",
            "TOKENIZERS_PARALLELISM": "true",
            "HOME": "/nonexistent",
            "COLUMNS": "40",
            "PYTHONUTF8": "0",
        },
    ),
]


def test_two_machines_on_two_days_make_the_same_adapter(tmp_path):
    tiny_chat_llama(tmp_path / "base", "date")
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": f"say {i}", "answer": f"ħé {i}"} for i in range(12)])
    (tmp_path / "federation.toml").write_text(
        tomli_w.dumps(
            {
                "federation": {"name": "machines", "rounds": 1},
                "model": {"kind": "causal-lm", "path": "base"},
                "adapter": {"kind": "lora", "rank": 2, "target_modules": ["q_proj"]},
                "data": {
                    "kind": "instruction",
                    "path": "train.jsonl",
                    "partition": {"kind": "iid", "clients": 2},
                },
                "training": {"kind": "backprop", "learning_rate": 0.01},
            }
        )
    )
    machines = []
    for number, (day, changes) in enumerate(MACHINES):
        out = tmp_path / f"run{number}"
        arguments = ["simulate", str(tmp_path / "federation.toml"), "--out", str(out), "--quiet"]
        process = subprocess.Popen(
            [sys.executable, "-c", PLAYED, day, *arguments],
            env={**os.environ, **changes},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        machines.append((process, out))
    found = []
    for process, out in machines:
        said = process.communicate()[1]
        assert process.returncode == 0, said[-2000:]
        summary = json.loads((out / "summary.json").read_text())
        weights = (out / "adapter" / "adapter_model.safetensors").read_bytes()
        found.append((summary["adapter_sha256"], summary["metric"], weights))
    assert found[0] == found[1]
