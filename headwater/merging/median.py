"""MedianAggregator: the coordinate-wise median of the updates.

Yin et al. 2018 (arXiv 1803.01498, definition 1): each value of the result is the median of the clients'
values at that coordinate. What fewer than half of the clients send, whatever it is, cannot move a value
beyond those of the others. The paper counts every client alike, which is this rule with weights of 1.

With weights it is the weighted median: with W the weight of all who train the value, the mean of the smallest
x at which the clients at or below x weigh at least W/2, and of the smallest at which they weigh more. Equal
weights give the usual median, for an even number the mean of the two in the middle. Then it is half of the
*weight* that decides, and a client's number of examples is its own word.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headwater.merging.buffered_rule import CoordinateRule


class MedianAggregator(CoordinateRule):
    """The weighted median, value by value; 0 where nobody trains. Exact but for one rounding to fp32."""

    name = "median"

    def merge(  # noqa: D102 - inherited
        self, values: npt.NDArray[np.float32], weights: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        order = np.argsort(values, axis=0, kind="stable")
        ordered = np.take_along_axis(values, order, axis=0)
        below = 2 * np.cumsum(np.take_along_axis(weights, order, axis=0), axis=0)  # integers: no rounding
        total = below[-1] // 2
        # who weighs nothing is never the first at which a sum is reached or passed
        lower = np.argmax(below >= total, axis=0)[None]
        upper = np.argmax(below > total, axis=0)[None]
        middle = np.take_along_axis(ordered, lower, axis=0).astype(np.float64)
        middle += np.take_along_axis(ordered, upper, axis=0)  # a sum of two fp32 is exact in fp64
        median: npt.NDArray[np.float64] = np.where(total > 0, middle[0] / 2, 0.0)
        return median
