from .config import MAEConfig as MAEConfig
from .mae import MAE as MAE
from .mae import Reconstruction as Reconstruction
from .mae import mae_loss as mae_loss
from .mae import random_masking as random_masking
from .training import embed as embed
from .training import evaluate as evaluate
from .training import train as train

__version__: str
