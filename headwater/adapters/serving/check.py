"""check(): who can serve an adapter, what would go wrong without a word, and what an export does about it."""

from __future__ import annotations

from dataclasses import dataclass

from headwater.adapters.serving.against_base import tied_end
from headwater.adapters.serving.base_files import BaseFiles
from headwater.adapters.serving.facts import (
    AS_IS,
    MERGED,
    MERGES,
    OK,
    REFUSED,
    REFUSES,
    RUNTIMES,
    SILENT,
    VIRTUAL,
    Fact,
    Runtime,
)  # fmt: skip
from headwater.adapters.serving.traits import (
    ACTIVATED,
    STARTED,
    TRAITS,
    Subject,
)  # fmt: skip

ITSELF = "not its format"
"""What a runtime that has a format of its own does with PEFT's folder."""


@dataclass(frozen=True)
class Verdict:
    """What one runtime does with an adapter.

    Args:
        runtime: its name.
        untouched: with the folder as PEFT writes it: ``ok``, ``wrong, nothing said``, ``refuses``, or
            ``not its format``.
        remedy: what ``headwater export --for`` does: ``as it is``, ``baked``, ``padded``, ``apart`` (several
            with ``, `` between), or ``refused``.
        reasons: a sentence each, for the traits that are not simply right.
        remarks: what else goes wrong there.
    """

    runtime: str
    untouched: str
    remedy: str
    reasons: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def served(self) -> bool:
        """Whether an export serves it."""
        return self.remedy != REFUSED


def check(subject: Subject, base: BaseFiles | None = None) -> list[Verdict]:
    """What each runtime of :data:`~headwater.adapters.serving.facts.RUNTIMES` does, and a merged model.

    Args:
        subject: the adapter.
        base: its base model, if it is at hand: whether both ends are one weight is known then.
    """
    return [*(verdict(subject, runtime) for runtime in RUNTIMES.values()), _merged(subject, base)]


def verdict(subject: Subject, runtime: Runtime) -> Verdict:
    """What one does."""
    folder = subject.path.is_dir()
    if not subject.lora:
        return _other_kind(subject, runtime)
    facts = {trait: runtime.facts[trait] for trait in subject.traits}
    untouched = next((u for u in (REFUSES, SILENT) if any(f.untouched == u for f in facts.values())), OK)
    if not (runtime.folder and folder):
        untouched = ITSELF
    remedies = [fact.remedy for fact in facts.values() if fact.remedy != AS_IS]
    remedy = REFUSED if REFUSED in remedies else ", ".join(dict.fromkeys(remedies)) or AS_IS
    told = {t: f for t, f in facts.items() if f.why and (remedy != REFUSED or f.remedy == REFUSED)}
    reasons = tuple(_reason(trait, subject.traits[trait], fact) for trait, fact in told.items())
    return Verdict(runtime.name, untouched, remedy, reasons, runtime.remarks)


def _reason(trait: str, found: str, fact: Fact) -> str:
    told = f"{TRAITS[trait]}: {found}" if found else TRAITS[trait]
    return f"{told}. {fact.untouched}: {fact.why}" if fact.untouched != OK else f"{told}. {fact.why}"


def _other_kind(subject: Subject, runtime: Runtime) -> Verdict:
    if runtime.name == "peft":
        return Verdict("peft", OK if subject.path.is_dir() else ITSELF, AS_IS)
    untouched = SILENT if runtime.name == "openvino" else REFUSES
    why = "no weight holds virtual tokens" if subject.kind in VIRTUAL else "merge it: --for merged"
    return Verdict(
        runtime.name,
        untouched if runtime.folder and subject.path.is_dir() else ITSELF,
        REFUSED,
        (f"{subject.kind} is not LoRA: {why}",),
    )


def _merged(subject: Subject, base: BaseFiles | None) -> Verdict:
    """Of the base with the adapter in its weights, which any runtime of that base serves."""
    if subject.kind in VIRTUAL:
        return Verdict(MERGED, ITSELF, REFUSED, (f"{subject.kind}: no weight holds virtual tokens",))
    if subject.kind not in MERGES:
        return Verdict(MERGED, ITSELF, REFUSED, (f"{subject.kind}: not known to merge in PEFT 0.21.2",))
    for trait in (ACTIVATED, STARTED):
        if trait in subject.traits:
            return Verdict(MERGED, ITSELF, REFUSED, (f"{TRAITS[trait]}: PEFT alone computes it",))
    if base is not None and (end := tied_end(subject, base)) is not None:
        return Verdict(MERGED, ITSELF, REFUSED, (f"{end} is adapted, and one weight with the other end",))
    why = ("any runtime of the base serves it",)
    return Verdict(
        MERGED, ITSELF, "merged", why, ("Into 4 bits a small change does not arrive: it is measured.",)
    )
