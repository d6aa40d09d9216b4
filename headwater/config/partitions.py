"""``[data.partition]``: who has which rows, one class a kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from headwater.config.settings import Settings


class ColumnPartition(Settings):
    """One client per value of a column."""

    kind: Literal["column"]
    column: str


class FilesPartition(Settings):
    """``data.path`` is a folder with one file per client, named after it."""

    kind: Literal["files"]


class IidPartition(Settings):
    """Rows dealt at random into equal shares."""

    kind: Literal["iid"]
    clients: int = Field(ge=1, le=1_000_000)


class DirichletPartition(Settings):
    """For each label, shares of the clients from Dirichlet(alpha) (arXiv 1909.06335)."""

    kind: Literal["dirichlet"]
    clients: int = Field(ge=1, le=1_000_000)
    alpha: float = Field(gt=0)
    column: str | None = Field(default=None, description="the label column if absent")
    min_examples: int = Field(default=10, ge=1)


class QuantityPartition(Settings):
    """Rows dealt at random into shares whose sizes follow Dirichlet(alpha)."""

    kind: Literal["quantity"]
    clients: int = Field(ge=1, le=1_000_000)
    alpha: float = Field(gt=0)
    min_examples: int = Field(default=10, ge=1)


Partition = Annotated[
    ColumnPartition | FilesPartition | IidPartition | DirichletPartition | QuantityPartition,
    Field(discriminator="kind"),
]
