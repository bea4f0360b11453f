from .config import DINOConfig as DINOConfig
from .config import DINOv2Config as DINOv2Config
from .dino import DINO as DINO
from .dinov2 import DINOv2 as DINOv2
from .loss import dino_loss as dino_loss
from .maps import mass_mask as mass_mask
from .maps import pca_colours as pca_colours
from .training import embed as embed
from .training import evaluate as evaluate
from .training import train as train

__version__: str
