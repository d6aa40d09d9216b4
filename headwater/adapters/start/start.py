"""Start: what a model began from, as hash, as lineage, and as the bytes that devices are sent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headwater.adapters.start.source import SENT, Source
from headwater.config.adapter import BaseAdapter
from headwater.errors import ModelError
from headwater.state import AdapterState
from headwater.tensor_bytes import save


@dataclass(frozen=True)
class Start:
    """The start of a federation that goes on with an adapter.

    Args:
        state: what travels.
        frozen: what stays at home, and comes from the same adapter.
        sha256: of both: of the state alone where nothing stays at home.
        lineage: which adapter it is, and which run made it: JSON values.
    """

    state: AdapterState
    frozen: AdapterState
    sha256: str
    lineage: Mapping[str, Any]

    @staticmethod
    def of(source: Source, adapter: BaseAdapter, state: AdapterState, frozen: AdapterState) -> Start:
        """Of what a model took from ``source``.

        Raises:
            ModelError: it is not what ``adapter.start_sha256`` says.
        """
        sha256 = state.sha256()
        if len(frozen.spec):
            sha256 = hashlib.sha256(f"{sha256}\n{frozen.sha256()}".encode()).hexdigest()
        wanted = adapter.start_sha256
        if wanted not in (None, sha256):
            raise ModelError(
                source.who, expected=f"sha256 {wanted}", got=sha256,
                hint="This is not the adapter that the federation starts from: get it again, or correct "
                "adapter.start_sha256.",
            )  # fmt: skip
        lineage = source.lineage(str(adapter.start))
        return Start(state, frozen, sha256, {**lineage, "start_sha256": sha256})

    def to_bytes(self, *, lineage: bool = False) -> bytes:
        """As a device is sent it: a safetensors file that ``adapter.start`` may name.

        Args:
            lineage: say in it where it comes from, too, which is none of a device's business.
        """
        content: dict[str, Any] = {"spec": self.state.spec.fingerprint()}
        said = json.dumps(content | ({"lineage": dict(self.lineage)} if lineage else {}))
        arrays = {name: value.contiguous().numpy() for name, value in {**self.state, **self.frozen}.items()}
        return save(arrays, metadata={SENT: said})
