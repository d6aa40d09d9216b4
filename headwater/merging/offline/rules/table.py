"""The table of merge rules: :data:`RULES`, by the name that ``--rule`` takes."""

from __future__ import annotations

from collections.abc import Mapping

from headwater.merging.offline.rule import Rule
from headwater.merging.offline.rules.breadcrumbs import Breadcrumbs, BreadcrumbsTies
from headwater.merging.offline.rules.compressed.copa import Copa
from headwater.merging.offline.rules.compressed.one_bit import OneBit
from headwater.merging.offline.rules.compressed.rmm import Rmm
from headwater.merging.offline.rules.compressed.twin import Twin
from headwater.merging.offline.rules.consensus import Consensus
from headwater.merging.offline.rules.dare import DareLinear, DareTies
from headwater.merging.offline.rules.della import Della, DellaLinear
from headwater.merging.offline.rules.fisher import Fisher
from headwater.merging.offline.rules.geometric_median import GeometricMedian
from headwater.merging.offline.rules.iso import IsoC, IsoCts
from headwater.merging.offline.rules.krum import Krum, MultiKrum
from headwater.merging.offline.rules.linear import Mean, TaskArithmetic
from headwater.merging.offline.rules.lore import Lore
from headwater.merging.offline.rules.magmax import MagMax
from headwater.merging.offline.rules.mats import Mats
from headwater.merging.offline.rules.median import Median, TrimmedMean
from headwater.merging.offline.rules.model_stock import ModelStock
from headwater.merging.offline.rules.opcm import Opcm
from headwater.merging.offline.rules.pcb import Pcb
from headwater.merging.offline.rules.regmean import RegMean, RegMeanPlusPlus
from headwater.merging.offline.rules.sce import Sce
from headwater.merging.offline.rules.searched import AdaMerging, Evolve, FrankWolfe, LoraHub
from headwater.merging.offline.rules.sphere import Karcher, Slerp
from headwater.merging.offline.rules.ties import Knots, MagnitudePrune, Ties
from headwater.merging.offline.rules.tsv import TsvM

_CLASSES: tuple[type[Rule], ...] = (
    *(Mean, TaskArithmetic, ModelStock, Slerp, Karcher, Krum, MultiKrum, GeometricMedian),
    *(Ties, Knots, MagnitudePrune, DareLinear, DareTies, Della, DellaLinear, Breadcrumbs, BreadcrumbsTies),
    *(MagMax, Sce, Consensus, Pcb, Median, TrimmedMean, TsvM, IsoC, IsoCts, Lore, Opcm),
    *(Twin, OneBit, Copa, Rmm),
    *(Fisher, RegMean, RegMeanPlusPlus, Mats, LoraHub, FrankWolfe, AdaMerging, Evolve),
)
RULES: Mapping[str, type[Rule]] = {rule.name: rule for rule in _CLASSES}
