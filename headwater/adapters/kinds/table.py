"""The kinds of adapters, by the class of their settings: :func:`kind_of`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headwater.adapters.kinds.adaption_prompt import AdaptionPromptKind
from headwater.adapters.kinds.banks import UniLoraKind, VbloraKind
from headwater.adapters.kinds.ia3 import Ia3Kind
from headwater.adapters.kinds.kind import AdapterKind
from headwater.adapters.kinds.lora import LoraKind
from headwater.adapters.kinds.lora_sb import LoraSbKind
from headwater.adapters.kinds.norms_and_biases import BeftKind, BitFitKind, LnTuningKind
from headwater.adapters.kinds.p_tuning import PTuningKind
from headwater.adapters.kinds.places import C3aKind, FourierFtKind, ShiraKind, WaveFtKind
from headwater.adapters.kinds.prefix import PrefixKind
from headwater.adapters.kinds.principal import OloraKind, PissaKind
from headwater.adapters.kinds.products import (
    DeloraKind,
    GloraKind,
    GraloraKind,
    HiraKind,
    LohaKind,
    LokrKind,
    MissKind,
    PeanutKind,
    RandLoraKind,
)
from headwater.adapters.kinds.prompt import PromptKind
from headwater.adapters.kinds.rotations import HraKind, OftKind, RoadKind
from headwater.adapters.kinds.vera import VeraKind
from headwater.config.adapter import BaseAdapter
from headwater.config.plugins import implementation
from headwater.errors import ConfigError

_ALL: tuple[type[AdapterKind[Any]], ...] = (
    LoraKind,
    LoraSbKind,
    PromptKind,
    PrefixKind,
    Ia3Kind,
    VeraKind,
    PTuningKind,
    PissaKind,
    OloraKind,
    AdaptionPromptKind,
    PeanutKind,
    LnTuningKind,
    BitFitKind,
    BeftKind,
    LohaKind,
    LokrKind,
    HiraKind,
    GraloraKind,
    GloraKind,
    DeloraKind,
    MissKind,
    RandLoraKind,
    VbloraKind,
    UniLoraKind,
    OftKind,
    HraKind,
    RoadKind,
    FourierFtKind,
    WaveFtKind,
    C3aKind,
    ShiraKind,
)
KINDS: Mapping[type[BaseAdapter], type[AdapterKind[Any]]] = {kind.settings: kind for kind in _ALL}


def kind_of(adapter: BaseAdapter) -> AdapterKind[Any]:
    """What ``[adapter]`` is.

    Raises:
        ConfigError: neither :data:`KINDS` nor an installed package has one for this class: it is never taken
            for another; or what the package has is no kind.
    """
    kind = KINDS.get(type(adapter)) or implementation("adapter_kinds", adapter)
    if not (isinstance(kind, type) and issubclass(kind, AdapterKind)):
        raise ConfigError(
            f"{type(adapter).__name__}.implementation",
            expected="a subclass of headwater.adapters.kinds.kind.AdapterKind",
            got=repr(kind)[:80],
        )
    return kind(adapter)
