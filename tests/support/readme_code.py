"""The Python in an export's README, as a reader would run it: :func:`readme_code`."""

from __future__ import annotations

import re
from pathlib import Path

ANSWER = "max_new_tokens=64"
"""What a README of a causal model asks for; its answer is told in tests/adapters/test_readmes.py."""


def readme_code(adapter: Path, *, answer: int = 8) -> str:
    """The code of ``adapter/README.md``, with an answer of so many tokens instead of 64."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", (adapter / "README.md").read_text(), re.M | re.S)
    assert (ANSWER in code) == ("generate(" in code)
    return code.replace(ANSWER, f"max_new_tokens={answer}")
