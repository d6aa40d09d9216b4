"""A federation without a base model starts and ends without the libraries that only a base needs."""

from __future__ import annotations

import subprocess
import sys

FEDERATION = """
[federation]
name = "vector"
rounds = 1
[model]
kind = "vector"
size = 8
[data]
kind = "none"
clients = 2
[training]
kind = "noop"
"""
HEAVY = ("transformers", "peft", "torch._dynamo", "scipy")


def test_no_library_of_models_is_loaded(tmp_path):
    (tmp_path / "federation.toml").write_text(FEDERATION)
    code = (
        "import sys; from headwater.cli.main import main; "
        f"code = main(['simulate', 'federation.toml', '--out', 'run', '--quiet']); "
        f"print(code, [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["0 []"], done.stderr[-2000:]
