"""The default of each config is its paper's recipe."""

from __future__ import annotations

from typing import Any

import pytest

from ssl_contrastive import BYOLConfig, MoCoConfig, SimCLRConfig, SimSiamConfig
from ssl_core.config import TrainConfig

# arXiv 2002.05709: LARS with 0.3 · batch / 256 at batch 4096
SIMCLR = (SimCLRConfig(), {"optimizer": "lars", "lr": 4.8, "temperature": 0.1})
# arXiv 1911.05722 and 2003.04297: SGD at batch 256
MOCO = (MoCoConfig(), {"optimizer": "sgd", "lr": 0.03, "queue": 65536, "ema": 0.999})
# arXiv 2006.07733: LARS with 0.2 · batch / 256 at batch 4096
BYOL = (BYOLConfig(), {"optimizer": "lars", "lr": 3.2, "ema": 0.996, "hidden": 4096})
# arXiv 2011.10566: SGD with 0.05 · batch / 256 at batch 512
SIMSIAM = (SimSiamConfig(), {"optimizer": "sgd", "lr": 0.1, "projection": 2048})


@pytest.mark.parametrize(("config", "paper"), [SIMCLR, MOCO, BYOL, SIMSIAM], ids=["simclr", "moco", "byol", "simsiam"])
def test_the_defaults_are_the_papers(config: TrainConfig, paper: dict[str, Any]):
    assert {name: getattr(config, name) for name in paper} == pytest.approx(paper)
