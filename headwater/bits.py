"""Which bits arithmetic gives: those of this machine's instructions, or the same on every x86-64 machine.

Libraries choose their code by the processor that they find, and other code rounds otherwise. In mode
``portable`` all are told to take what every x86-64 processor has, before they are loaded:

============  ======================================================  ===================================
library       told by                                                 takes
============  ======================================================  ===================================
PyTorch       ``ATEN_CPU_CAPABILITY``                                 no AVX2, no AVX-512
MKL           ``MKL_CBWR``                                            SSE2 without approximate reciprocals
oneDNN        ``ONEDNN_MAX_CPU_ISA``                                  SSE4.1
NumPy         ``NPY_DISABLE_CPU_FEATURES``                            its baseline
OpenBLAS      ``OPENBLAS_CORETYPE``, ``OPENBLAS_NUM_THREADS``         one kernel; no number of cores
C library     ``GLIBC_TUNABLES``                                      exp, sin, pow without FMA
============  ======================================================  ===================================

GPUs are hidden. The C library reads its variable when a process starts, so a process cannot become portable:
it is started so (:func:`environment`), or starts itself again (:func:`enter`). ``python -m headwater.bits
COMMAND …`` starts any command so.
"""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any, Literal

from headwater.errors import ConfigError

Bits = Literal["machine", "portable"]

_MODE = "HEADWATER_BITS"
"""The variable that says in which mode a process was started."""
_VARIABLES = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OPENBLAS_CORETYPE": "Nehalem",
    "OPENBLAS_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HIP_VISIBLE_DEVICES": "",
}
_GLIBC = "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4"
_TAKEN_AWAY = {
    "DNNL_DEFAULT_FPMATH_MODE",
    "MKL_VML_MODE",
    "NPY_ENABLE_CPU_FEATURES",  # NumPy refuses to start with both
    "ONEDNN_DEFAULT_FPMATH_MODE",
}
_NUMPY = {
    False: "AVX F16C FMA3 AVX2 AVX512F AVX512CD AVX512_KNL AVX512_KNM AVX512_SKX AVX512_CLX AVX512_CNL "
    "AVX512_ICL AVX512_SPR",
    True: "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
}
"""What it dispatches on before, and since, version 2.4; by name."""
_WITHOUT_FMA = (
    (math.exp(19.233411980106663), "0x1.aded5353c9fa4p+27"),
    (math.sin(5.966777231618224), "-0x1.3e9f67adbaf64p-2"),
    (math.pow(0.999, 1371.7200352281646), "0x1.0394839947d12p-2"),
)
"""What glibc's code gives, since 2.28; in each its code with FMA rounds the last bit the other way."""


def environment(bits: str, around: Mapping[str, str]) -> dict[str, str]:
    """``around`` as a process of this mode must find it at its start.

    Args:
        bits: ``machine``, which changes nothing, or ``portable``.
        around: of the process that starts it.
    """
    if bits != "portable":
        return dict(around)
    kept = {name: value for name, value in around.items() if name not in _TAKEN_AWAY}
    tunables = [t for t in kept.get("GLIBC_TUNABLES", "").split(":") if t and "cpu.hwcaps=" not in t]
    since_2_4 = tuple(map(int, version("numpy").split(".")[:2])) >= (2, 4)
    return kept | _VARIABLES | {
        _MODE: bits,
        "GLIBC_TUNABLES": ":".join([*tunables, _GLIBC]),
        "NPY_DISABLE_CPU_FEATURES": _NUMPY[since_2_4],
    }  # fmt: skip


def here() -> str:
    """The mode in which this process was started."""
    return os.environ.get(_MODE, "machine")


def enter(bits: str, *, own_process: bool) -> None:
    """Go on in this mode: a process of our own starts itself again where it must. Before anything computes.

    Args:
        bits: the mode.
        own_process: whether this process is the command's own, so that its command line can be run again;
            another one goes on as it is, and :func:`require` says what is wrong with that.
    """
    if bits == "portable" != here() and own_process:
        sys.stdout.flush()
        sys.stderr.flush()
        arguments = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, arguments, environment(bits, os.environ))  # the same process id


def require(bits: str) -> None:
    """Refuse to compute in another mode than this one.

    Raises:
        ConfigError: this process was started in another, or a library does not take what it was told.
    """
    if bits != here():
        raise ConfigError(
            f"federation.bits {bits!r}",
            expected="a process that was started in this mode",
            got=f"one of mode {here()!r}",
            hint="`headwater simulate` starts itself so; a server's stands in server.toml, as bits; a script "
            "of yours is started so by: python -m headwater.bits python SCRIPT.py"
            if bits == "portable"
            else f"Start it without python -m headwater.bits, and without {_MODE} in its environment.",
        )
    if bits == "portable":
        for expected, got in _obstacles():
            raise ConfigError(
                'federation.bits "portable"',
                expected=expected,
                got=got,
                hint='Take bits = "machine", or another machine or installation.',
            )


def _obstacles() -> Iterator[tuple[str, str]]:
    """What keeps the bits of this process from being those of others: expected, got."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        yield "an x86-64 processor", platform.machine()
    for name, value in environment("portable", os.environ).items():
        if os.environ.get(name) != value:
            yield f"{name}={value}", repr(os.environ.get(name))
    if any(found != float.fromhex(known) for found, known in _WITHOUT_FMA):
        yield "the bits of glibc's exp, sin and pow without FMA", "others, from this C library"
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and (found := numpy.show_config(mode="dicts")["SIMD Extensions"].get("found")):
        yield "NumPy at its baseline", f"NumPy with {', '.join(found)}"
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.backends.cpu.get_cpu_capability() != "DEFAULT":
        yield "PyTorch without AVX", f"PyTorch with {torch.backends.cpu.get_cpu_capability()}"
    if torch is not None and not torch.backends.mkl.is_available():
        yield "a PyTorch that was built with MKL", "one without"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit("usage: python -m headwater.bits COMMAND [ARGUMENT …]")
    os.execvpe(sys.argv[1], sys.argv[1:], environment("portable", os.environ))
