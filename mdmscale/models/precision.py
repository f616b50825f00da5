"""The precisions that weights may have, by the names that options give them."""

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
