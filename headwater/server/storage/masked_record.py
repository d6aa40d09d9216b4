"""MaskedRecord: how far a round's masked sum has come, for a process that has to go on with it.

There is no secret in it, and nothing of an update: keys are made anew. But what clients may have told of the
round limits what they tell again (:mod:`headwater.security.secagg.memory`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from headwater.errors import StorageError
from headwater.files import write_atomically


@dataclass(frozen=True)
class MaskedRecord:
    """Of one round.

    Args:
        round: its number.
        attempt: the last one at its sum, hex; empty before the first.
        vectors: whether clients have been asked for their masked vectors.
        survivors: the list that they were asked to sign; empty before.
    """

    round: int
    attempt: str = ""
    vectors: bool = False
    survivors: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Write it, atomically and for good: what follows from it is asked only then."""
        write_atomically(path, json.dumps(asdict(self)).encode())

    @staticmethod
    def load(path: Path, round: int) -> MaskedRecord:
        """That of this round; an empty one if there is none.

        Raises:
            StorageError: it is damaged.
        """
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            found = MaskedRecord(
                int(row["round"]),
                str(row["attempt"]),
                bool(row["vectors"]),
                tuple(map(str, row["survivors"])),
            )
            bytes.fromhex(found.attempt)
        except FileNotFoundError:
            return MaskedRecord(round)
        except (OSError, ValueError, OverflowError, TypeError, KeyError) as error:
            raise StorageError(
                f"{path}", expected="how far a masked sum has come", got=str(error)[:100],
                hint="Delete the file: the sum is tried anew, or the round is left out.",
            ) from error  # fmt: skip
        return found if found.round == round else MaskedRecord(round)
