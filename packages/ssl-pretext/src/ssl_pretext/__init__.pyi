from .colorization import Colorization as Colorization
from .colorization import colorization_loss as colorization_loss
from .config import ColorizationConfig as ColorizationConfig
from .config import JigsawConfig as JigsawConfig
from .config import RelativePatchConfig as RelativePatchConfig
from .config import RotationConfig as RotationConfig
from .jigsaw import Jigsaw as Jigsaw
from .jigsaw import jigsaw_loss as jigsaw_loss
from .lab import lab_to_rgb as lab_to_rgb
from .lab import rgb_to_lab as rgb_to_lab
from .permutations import permutation_set as permutation_set
from .relative_patch import RelativePatch as RelativePatch
from .relative_patch import relative_patch_loss as relative_patch_loss
from .rotation import Rotation as Rotation
from .rotation import four_rotations as four_rotations
from .rotation import rotation_loss as rotation_loss
from .training import embed as embed
from .training import evaluate as evaluate
from .training import train as train

__version__: str
