from .byol import BYOL as BYOL
from .byol import byol_loss as byol_loss
from .config import BYOLConfig as BYOLConfig
from .config import MoCoConfig as MoCoConfig
from .config import SimCLRConfig as SimCLRConfig
from .config import SimSiamConfig as SimSiamConfig
from .moco import MoCo as MoCo
from .moco import info_nce_loss as info_nce_loss
from .simclr import SimCLR as SimCLR
from .simclr import nt_xent_loss as nt_xent_loss
from .simsiam import SimSiam as SimSiam
from .simsiam import simsiam_loss as simsiam_loss
from .training import embed as embed
from .training import evaluate as evaluate
from .training import train as train

__version__: str
