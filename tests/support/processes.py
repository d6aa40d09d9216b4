"""Another process than the test's, without paying for its imports: :func:`in_another`."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def in_another(function: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
    """What a function of a module gives in a process that has computed nothing.

    It has nothing of the test's process but the arguments and the environment. As a simulation's workers on
    Linux, it is forked from a process that has only imported, which they share: torch and PEFT take seconds.
    """
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        context.set_forkserver_preload(["headwater.simulation.preload"])  # for the first who comes
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments, **keywords).result()
