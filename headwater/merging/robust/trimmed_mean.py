"""TrimmedMeanAggregator: the mean of each value without its largest and its smallest ones.

Yin et al. 2018 (arXiv 1803.01498, definition 2), with a number of clients in place of the paper's fraction β.
Of a value that some clients do not train, the ends are those of the clients that do. Where these are no more
than 2·drop nothing would be left but what liars may have sent alone: the value stays as it was.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.errors import ConfigError
from headwater.merging.buffered_rule import BufferedUpdates, CoordinateRule


class TrimmedMeanAggregator(CoordinateRule):
    """The unweighted trimmed mean, value by value, in float64.

    Args:
        drop: updates left out at each end of each value.
        most_bytes: that the updates of one round may take in memory.
    """

    name = "trimmed_mean"

    def __init__(self, drop: int, most_bytes: int) -> None:
        super().__init__(most_bytes)
        self.drop = drop

    def merged(self, acc: BufferedUpdates) -> npt.NDArray[np.float64]:
        """The result.

        Raises:
            ConfigError: 2·drop updates or fewer.
        """
        least = 2 * self.drop + 1
        if len(acc.values) < least:
            raise ConfigError(
                f"strategy '{self.name}'",
                expected=f"at least {least} updates with drop = {self.drop}",
                got=f"{len(acc.values)}",
            )
        return super().merged(acc)

    def merge(  # noqa: D102 - inherited
        self, values: npt.NDArray[np.float32], weights: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        trains = weights > 0
        # who does not train a value stands behind all who do
        ordered = np.sort(np.where(trains, values, np.float32(np.inf)), axis=0).astype(np.float64)
        count = trains.sum(axis=0)
        place = np.arange(len(values))[:, None]
        kept = (place >= self.drop) & (place < count - self.drop)
        total = np.where(kept, ordered, 0.0).sum(axis=0)
        mean: npt.NDArray[np.float64] = total / np.maximum(count - 2 * self.drop, 1)
        return mean
