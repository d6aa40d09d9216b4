from headwater import hf as hf
from headwater.adapters.predict import Predictor as Predictor
from headwater.compression.codec import Codec as Codec
from headwater.config.federation import Federation as Federation
from headwater.config.load import LoadedFederation as LoadedFederation
from headwater.errors import HeadwaterError as HeadwaterError
from headwater.hf.function import local_training as local_training
from headwater.merging.aggregator import Aggregator as Aggregator
from headwater.simulation.load import load as load
from headwater.simulation.run import Run as Run
from headwater.simulation.run import simulate as simulate
from headwater.simulation.sweeps.call import sweep as sweep
from headwater.state import AdapterState as AdapterState
from headwater.state import StateSpec as StateSpec
from headwater.training.cohort import CohortTrainer as CohortTrainer
from headwater.training.merging.call import merge as merge

__version__: str
__all__: list[str]
