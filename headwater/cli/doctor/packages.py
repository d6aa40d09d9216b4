"""What is installed: Python, what headwater requires, its extras, torch with its GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from headwater import __version__
from headwater.cli.doctor.findings import Finding
from headwater.errors import MissingDependency

EXTRAS: Mapping[str, str] = {
    "simulation": "Parquet files, the baseline `probe`",
    "datasets": "folders of the package datasets",
    "ray": "simulate --engine ray",
    "gguf": "bases in a GGUF file",
    "tensorboard": "the tracker of this name",
    "mlflow": "the tracker of this name",
    "wandb": "the tracker of this name, offline",
    "privacy": "what noise costs: epsilon",
    "gpu": "quantised bases, optimizer adamw8bit",
    "speed": "compiled loops of merging and compression",
}
"""What each extra that people install is for; ``dev`` and ``fuzz`` are for who works on headwater."""
_MISSING = MissingDependency.exit_code


def installation() -> Iterator[Finding]:
    """Python and the package."""
    version = ".".join(map(str, sys.version_info[:3]))
    wanted = metadata.metadata("headwater")["Requires-Python"]
    if SpecifierSet(wanted).contains(version):
        yield Finding("python", "ok", f"{version}, {sys.executable}")
    else:
        yield Finding(
            "python", "bad", f"{version}, but {wanted} is needed", "Install another Python.", _MISSING
        )
    yield Finding("headwater", "ok", f"{__version__}, {Path(__file__).parents[2]}")


def requirements() -> Iterator[Finding]:
    """The packages that every role needs, and each extra."""
    whole, extras = _declared()
    wrong = [problem for requirement in whole if (problem := _problem(requirement))]
    if not wrong:
        yield Finding("packages", "ok", f"all {len(whole)} that headwater needs")
    for problem in wrong:
        yield Finding("packages", "bad", problem, "pip install headwater", _MISSING)
    for extra, purpose in EXTRAS.items():
        check = f"extra {extra}"
        if extra not in extras:  # a checkout that has moved on since it was installed
            yield Finding(check, "note", "the installed headwater does not know it", "Install it afresh.")
            continue
        problems = [problem for requirement in extras[extra] if (problem := _problem(requirement))]
        if problems:
            advice = f'For {purpose}: pip install "headwater[{extra}]"'
            yield Finding(check, "note", "; ".join(problems), advice)
        else:
            names = ", ".join(f"{r.name} {metadata.version(r.name)}" for r in extras[extra])
            yield Finding(check, "ok", names)


def accelerator() -> Iterator[Finding]:
    """torch, the processor as it sees it, and the GPU."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library of it does not load
        yield Finding("torch", "bad", f"it does not import: {error}", "Install torch afresh.", _MISSING)
        return
    capability = torch.backends.cpu.get_cpu_capability()
    yield Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads, {capability}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            memory = f"{about.total_memory / 2**30:.1f} GiB, CUDA {torch.version.cuda}"
            yield Finding("gpu", "ok", f"{about.name}, {memory}")
    elif torch.version.cuda is None and Path("/proc/driver/nvidia/version").exists():
        advice = "pip install --force-reinstall torch, from an index with CUDA builds"
        yield Finding("gpu", "note", "an NVIDIA driver is there, but torch is a CPU build", advice)
    elif torch.version.cuda is not None:
        yield Finding(
            "gpu", "note", f"none that torch (CUDA {torch.version.cuda}) can use", "Is there a driver?"
        )
    else:
        yield Finding("gpu", "ok", "none; torch is a CPU build, and runs use the processor")


def _declared() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """What the installed package declares: for everybody, and by extra."""
    found = [Requirement(text) for text in metadata.requires("headwater") or []]
    names = metadata.metadata("headwater").get_all("Provides-Extra") or []
    whole = [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]
    extras = {
        name: [r for r in found if r not in whole and r.marker and r.marker.evaluate({"extra": name})]
        for name in names
    }
    return whole, extras


def _problem(requirement: Requirement) -> str:
    """What is wrong with a package; empty if nothing is."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if requirement.specifier.contains(version, prereleases=True):
        return ""
    return f"{requirement.name} is {version}, but {requirement.specifier} is needed"
