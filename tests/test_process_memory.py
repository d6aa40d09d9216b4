"""What this process does about garbage while it imports."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from headwater.process_memory import importing

FROZEN = """
import gc, sys
from headwater.process_memory import importing
with importing():
    pass
before = gc.get_freeze_count()
with importing(for_good=True):
    pass
first = gc.get_freeze_count()
made = [[] for _ in range(5000)]
with importing():
    pass
second = gc.get_freeze_count()
with importing():
    sys.modules |= {f"made{i}": sys for i in range(600)}
print(before, first > 1000, second < first + 1000, gc.get_freeze_count() > first + 4000, gc.isenabled())
"""


def test_nobody_looks_for_garbage_within_and_everybody_does_after():
    assert gc.isenabled()
    with importing():
        assert not gc.isenabled()
        with importing():
            assert not gc.isenabled()
        assert not gc.isenabled()  # the outer one has not ended
    assert gc.isenabled()
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()


def test_only_what_is_imported_for_good_is_left_out_of_later_looks():
    done = subprocess.run([sys.executable, "-c", FROZEN], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "True", "True", "True", "True"]
