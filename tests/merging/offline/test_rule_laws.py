"""Every rule of the table that looks at no rows under the laws of offline rules."""

from __future__ import annotations

import numpy as np

from headwater.merging.offline.rule import DataRule
from headwater.merging.offline.rules.breadcrumbs import Breadcrumbs, BreadcrumbsTies
from headwater.merging.offline.rules.compressed.copa import Copa
from headwater.merging.offline.rules.compressed.one_bit import OneBit
from headwater.merging.offline.rules.compressed.rmm import Rmm
from headwater.merging.offline.rules.compressed.twin import Twin
from headwater.merging.offline.rules.consensus import Consensus
from headwater.merging.offline.rules.dare import DareLinear, DareTies
from headwater.merging.offline.rules.della import Della, DellaLinear
from headwater.merging.offline.rules.geometric_median import GeometricMedian
from headwater.merging.offline.rules.iso import IsoC, IsoCts
from headwater.merging.offline.rules.krum import Krum, MultiKrum
from headwater.merging.offline.rules.linear import Mean, TaskArithmetic
from headwater.merging.offline.rules.lore import Lore
from headwater.merging.offline.rules.magmax import MagMax
from headwater.merging.offline.rules.median import Median, TrimmedMean
from headwater.merging.offline.rules.model_stock import ModelStock
from headwater.merging.offline.rules.opcm import Opcm
from headwater.merging.offline.rules.pcb import Pcb
from headwater.merging.offline.rules.sce import Sce
from headwater.merging.offline.rules.sphere import Karcher, Slerp
from headwater.merging.offline.rules.table import RULES
from headwater.merging.offline.rules.ties import Knots, MagnitudePrune, Ties
from headwater.merging.offline.rules.tsv import TsvM
from tests.laws.offline_rule_laws import OfflineRuleLaws


class TestMean(OfflineRuleLaws):
    rule = whole = alike = Mean()


class TestTaskArithmetic(OfflineRuleLaws):
    rule = whole = TaskArithmetic()
    alike = None  # a sum


class TestModelStock(OfflineRuleLaws):
    rule = whole = alike = ModelStock()


class TestSlerp(OfflineRuleLaws):
    rule = alike = Slerp()
    whole = None  # of two


class TestKarcher(OfflineRuleLaws):
    rule = whole = alike = Karcher()


class TestKrum(OfflineRuleLaws):
    rule = Krum()
    whole = None  # f hostile ones need 2 f + 3
    alike = Krum(faulty=0)


class TestMultiKrum(OfflineRuleLaws):
    rule = MultiKrum(selected=2)
    whole = None
    alike = MultiKrum(faulty=0)


class TestGeometricMedian(OfflineRuleLaws):
    rule = whole = alike = GeometricMedian()


class TestTies(OfflineRuleLaws):
    rule = Ties(density=0.5)
    whole = alike = Ties(density=1)


class TestKnots(OfflineRuleLaws):
    rule = Knots(density=0.5)
    whole = alike = Knots(density=1)


class TestMagnitudePrune(OfflineRuleLaws):
    rule = MagnitudePrune(density=0.5)
    whole = alike = MagnitudePrune(density=1)


class _Draws(OfflineRuleLaws):
    """What is dropped depends on an adapter's contents."""

    def draws(self) -> bool:
        return True


class TestDareLinear(_Draws):
    rule = DareLinear(density=0.5)
    whole = alike = DareLinear(density=1)


class TestDareTies(_Draws):
    rule = DareTies(density=0.5)
    whole = alike = DareTies(density=1)


class TestDella(_Draws):
    rule = Della(density=0.5)
    whole = alike = Della(density=1, epsilon=0)


class TestDellaLinear(_Draws):
    rule = DellaLinear(density=0.5)
    whole = alike = DellaLinear(density=1, epsilon=0)


class TestBreadcrumbs(OfflineRuleLaws):
    rule = Breadcrumbs(density=0.5, gamma=0.1)
    whole = alike = Breadcrumbs(density=1)


class TestBreadcrumbsTies(OfflineRuleLaws):
    rule = BreadcrumbsTies(density=0.5, gamma=0.1)
    whole = alike = BreadcrumbsTies(density=1)


class TestMagMax(OfflineRuleLaws):
    rule = whole = alike = MagMax()


class TestSce(OfflineRuleLaws):
    rule = whole = alike = Sce(density=0.5)


class TestConsensus(OfflineRuleLaws):
    rule = alike = Consensus()
    whole = None  # what one alone needs is what the rule drops

    def test_equal_values_stay_equal_however_their_sum_was_rounded(self):
        """|p·τ_i| = λ·|M − p·τ_i| of few digits: the order of the sum M decides its last bit."""
        grid = np.random.default_rng(0).integers(-9, 10, (4, 2000)) / 80
        found = []
        for order in ((0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)):
            total = sum((grid[i] / 4 for i in order), np.zeros(2000))
            terms = [self.rule.second_terms((total,), grid[i], 0.25, 4) for i in order]
            found.append(self.rule.result((sum(t[0] for t in terms), sum(t[1] for t in terms))))
        assert all(np.abs(found[0] - other).max() < 1e-12 for other in found)


class TestPcb(OfflineRuleLaws):
    rule = Pcb(density=0.5)
    whole = alike = None  # the value that competes worst never counts
    scales = False  # tanh


class TestMedian(OfflineRuleLaws):
    rule = whole = alike = Median()


class TestTrimmedMean(OfflineRuleLaws):
    rule = alike = TrimmedMean()
    whole = TrimmedMean(drop=0)


class TestTsvM(OfflineRuleLaws):
    rule = whole = alike = TsvM()
    copies = 2  # three of rank 3 have no room in a weight of six rows, and are cut


class TestIsoC(OfflineRuleLaws):
    rule = IsoC()
    whole = alike = None  # it makes singular values equal


class TestIsoCts(OfflineRuleLaws):
    rule = IsoCts(common=0.5)
    whole = alike = None


class TestLore(OfflineRuleLaws):
    rule = whole = alike = Lore(threshold=0.5)
    scales = False  # the threshold is a length


class TestTwin(OfflineRuleLaws):
    rule = whole = alike = Twin(exclusive=0.5)


class TestOneBit(OfflineRuleLaws):
    rule = OneBit()
    whole = alike = None  # signs and a magnitude are not the adapter


class TestCopa(OfflineRuleLaws):
    rule = Copa(density=0.5)
    whole = alike = Copa(density=1)


class TestRmm(OfflineRuleLaws):
    rule = whole = alike = Rmm(directions=1)


class TestOpcm(OfflineRuleLaws):
    rule = whole = alike = Opcm()


def test_every_rule_of_the_table_is_under_the_laws() -> None:
    tested = {kind.rule.name for kind in globals().values() if _is_suite(kind)}
    assert tested == {name for name, rule in RULES.items() if not issubclass(rule, DataRule)}


def _is_suite(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, OfflineRuleLaws) and kind.__name__.startswith("Test")
