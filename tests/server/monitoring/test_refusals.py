"""Every reason for which the port refuses is one of a table, and stands in the guide."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from headwater.server.agent_port import request_auth as authenticator
from headwater.server.monitoring.refusals import NOT_SIGNED, OTHER, REASONS

PAGE = Path(__file__).parents[3] / "docs/guides/watching.md"


def raised() -> set[str]:
    """The reasons that stand in the request authenticator's code."""
    tree = ast.parse(Path(authenticator.__file__).read_text(encoding="utf-8"))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "_Refusal"]
    assert calls
    reasons = [call.args[0] for call in calls]
    assert all(isinstance(reason, ast.Constant) for reason in reasons), "a reason that cannot be listed"
    return {reason.value for reason in reasons}


def test_the_table_has_every_reason_and_no_other():
    known = raised() | set(authenticator._ANSWERS.values()) | {"not answered", NOT_SIGNED, OTHER}
    assert set(REASONS) == known


def test_the_guide_has_the_table():
    page = PAGE.read_text(encoding="utf-8").partition("## What the port refuses")[2].partition("\n## ")[0]
    assert dict(re.findall(r"^- `([^`]+)`: (.+)$", page, re.MULTILINE)) == REASONS
