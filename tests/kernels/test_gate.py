"""Whoever folds little does not load a compiler."""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from headwater.kernels.gate import Gate

LOADED = SimpleNamespace(KEPT=True)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []

    def load(name: str) -> SimpleNamespace:
        asked.append(name)
        return LOADED

    monkeypatch.setattr(importlib, "import_module", load)
    return asked


def test_loops_are_loaded_once_numpy_has_lost_a_second(loads: list[str]) -> None:
    gate = Gate()
    assert [gate.after(0.4e9) for _ in range(3)] == [None, None, LOADED]
    assert len(loads) == 1


def test_work_that_is_foreseen_opens_at_once_and_counts_once(loads: list[str]) -> None:
    gate = Gate()
    gate.expect(1.5e9)
    assert gate.after(0.1e9) is LOADED
    little = Gate()
    little.expect(0.6e9)
    assert [little.after(0.3e9) for _ in range(4)] == [None, None, None, LOADED]
    assert len(loads) == 2


def test_code_that_is_not_kept_is_used_only_where_compiling_pays(
    loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    anew = SimpleNamespace(KEPT=False)
    monkeypatch.setattr(importlib, "import_module", lambda name: anew)
    gate = Gate()
    assert [gate.after(1.5e9) for _ in range(3)] == [None, None, anew]


def test_many_threads_load_once(loads: list[str]) -> None:
    gate = Gate()
    with ThreadPoolExecutor(8) as pool:
        assert set(map(id, pool.map(lambda _: gate.after(2e9), range(64)))) == {id(LOADED)}
    assert len(loads) == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [(ModuleNotFoundError("none", name="numba"), 0), (ImportError("Numba needs NumPy 2.4 or less"), 1)],
)
def test_numpy_folds_where_there_is_no_compiler(
    error: ImportError, said: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    gate = Gate()
    with caplog.at_level(logging.WARNING, "headwater.kernels.gate"):
        assert gate.open() is None
        assert gate.open() is None
    assert len(caplog.records) == said


def test_little_work_imports_no_numba() -> None:
    program = (
        "import sys; from headwater.kernels.gate import GATE; GATE.after(9e8); print('numba' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
