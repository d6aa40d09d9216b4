"""SharedNoise: the merge rule of differential privacy whose noise the clients draw, under masks.

The distributed discrete Gaussian mechanism (Kairouz, Liu, Steinke 2021, arXiv 2102.06387), without its
rotation and conditional rounding: units are so fine that rounding costs √d/2 of them (:mod:`.private_sum`).

Each device shortens its update to C, rounds it to units, adds discrete Gaussian noise of σ/√H and masks the
result. H is how many honest clients are in every sum whose list they sign
(:func:`headwater.security.secagg.bounds.fewest_honest`). Formal guarantees, of the sum that the server sees:

- However many of those that it asks are the server's own, up to ``mask_colluding``, and whoever drops out:
  H honest clients' shares are in it, which nobody else knows; what more is in it is computed from their sum.
- An honest client's part is no longer than C·2^bits + √d/2 units. A *lying* client can lengthen its own part:
  it spoils the sum, and tells nothing of others.
- A device draws once for each vector, keeps it, and sends it in one attempt only. So of the sums of a round
  that a lying server puts together, each honest owner is in one at most.
- Units, σ and H follow from the file; all of a sum have stated the same (``common_digest``).
- Sums are taken in a ring, which is computed from the noised sum: what leaves the ring costs no privacy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from headwater.errors import ConfigError
from headwater.merging.aggregator import Merged
from headwater.merging.fixed_point import require_range
from headwater.merging.participants import Participants
from headwater.merging.plan import MergePlan, NoiseShare, PrivateSum
from headwater.privacy.noise import Randomness, discrete_gaussian
from headwater.security.secagg.ring import Integers, RingLayout, RingPart
from headwater.strategies.private_sum import NoisedSum, NoisedSums, private_of, released


@dataclass
class SharedSums(NoisedSums):
    """The same, of vectors that have their noise.

    Args:
        noised: whether all that is in it came through :meth:`SharedNoise.to_sums`.
    """

    noised: bool = False


class SharedNoise(NoisedSum):
    """A clipped sum, of clients that each add a share of its noise, over a fixed number.

    Args:
        randomness: a client's own.
    """

    def __init__(self, randomness: Callable[[str], Randomness]) -> None:
        super().__init__(_nobody)
        self._randomness = randomness

    def sum_layout(self, plan: MergePlan) -> RingLayout:
        """Σ round(clip(δ)·2^bits) + noise: what is drawn is bounded, so no honest sum leaves the ring."""
        private, size = private_of(plan), plan.spec.numel
        most = plan.total_weight * _most_of_one(private, size)
        return RingLayout((RingPart("noised deltas", size, -most, most),))

    def to_sums(self, acc: NoisedSums) -> list[Integers]:
        """One client's vector, with its noise. Each call draws anew: keep what it gives.

        Raises:
            ConfigError: an accumulator of another number of clients: each draws a share by itself.
        """
        plan, clients = acc.participants.plan, sorted(acc.participants.clients)
        if len(clients) != 1:
            raise ConfigError("noise in shares", expected="one client's update", got=f"{len(clients)}")
        size = plan.spec.numel
        noise = discrete_gaussian(private_of(plan).share(size), size, self._randomness(clients[0]))
        return [acc.total.numpy() + noise]

    def from_sums(self, plan: MergePlan, clients: Collection[str], sums: Sequence[Integers]) -> SharedSums:
        """What the server is shown of these clients."""
        return SharedSums(Participants.all_of(plan, clients), torch.from_numpy(sums[0]), noised=True)

    def require_sound(self, acc: NoisedSums) -> None:
        """Refuse a sum that no honest vectors of its clients have.

        Raises:
            DecodeError: a client sent something else.
        """
        plan = acc.participants.plan
        most = len(acc.participants.clients) * _most_of_one(private_of(plan), plan.spec.numel)
        require_range(acc.total, "noised deltas", low=-most, high=most)

    def finalize(self, acc: NoisedSums) -> Merged:
        """The sum over m: nothing is drawn here. The report is :class:`NoisedSum`'s, of all shares' noise.

        Raises:
            ConfigError: updates without their noise are in it: they came without masks.
        """
        if not (isinstance(acc, SharedSums) and acc.noised):
            raise ConfigError(
                "noise in shares", expected="a masked sum, whose vectors have their noise",
                got="updates as they are", hint="This is a fault of headwater: please report it.",
            )  # fmt: skip
        sigma = private_of(acc.participants.plan).share(acc.total.numel())
        return released(acc, acc.total, sigma * math.sqrt(len(acc.participants.clients)))


def _most_of_one(private: PrivateSum, size: int) -> int:
    """In one value of an honest client's vector, in units."""
    return math.ceil(private.clip * 2.0**private.bits) + 1 + NoiseShare.MOST * private.share(size)


def _nobody(what: str, multiplier: float, longest: float, size: int) -> tuple[Integers, int]:
    raise ConfigError("noise in shares", expected="clients' noise", got="a server that draws it")
