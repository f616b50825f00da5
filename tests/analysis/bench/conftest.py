"""Sizes of a small benchmark, and the loss paths by name."""

import pytest
import torch

from mdmscale.analysis.bench.paths import LOSS_PATHS
from mdmscale.analysis.bench.work import Sizes

CPU = torch.device("cpu")
PATHS = {path.name: path for path in LOSS_PATHS}


@pytest.fixture
def sizes() -> Sizes:
    return Sizes(64, 16, 2, 2, 1, 32, 3, "fp32", CPU)
