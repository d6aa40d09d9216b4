"""The federation file as frozen, typed settings. :class:`Federation` is the whole file.

One table of the TOML file is one module here; tables with a ``kind`` are unions. Unknown keys and
wrong types are errors. Units stand in the names. Nothing here imports torch.
"""

from __future__ import annotations

from pydantic import model_validator

from headwater.config.consistency import require_consistent
from headwater.config.tables import FederationTables


class Federation(FederationTables):
    """The whole federation file."""

    @model_validator(mode="after")
    def _fits_together(self) -> Federation:
        require_consistent(self)
        return self
