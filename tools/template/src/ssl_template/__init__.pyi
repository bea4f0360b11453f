from .config import RotNetConfig as RotNetConfig
from .rotation import RotNet as RotNet
from .rotation import four_rotations as four_rotations
from .rotation import rotation_loss as rotation_loss
from .training import embed as embed
from .training import evaluate as evaluate
from .training import train as train

__version__: str
