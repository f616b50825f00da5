"""What the authors' published scripts train, so that their tables can be checked. It is biased.

The launch scripts of P-POTS with MIRROR in the repository of arXiv 2511.18159 (dj614/StableDLLM, August and
November 2025) draw t from p but leave out the weight 1 / p(t). They clamp a sample's loss at 10, and draw no
second mask for t of 0.9 or more. p is fitted to losses, within [1/30, 29/30], without a share of the uniform
density. So the objective leans to large t.
"""

from dataclasses import dataclass

import numpy as np

from mdmscale.diffusion.bernoulli import SINGLE, antithetic_masks
from mdmscale.diffusion.corruption import Corruption, Draw, NoisedRows
from mdmscale.diffusion.schedule import mask_rate

T_RANGE = (1 / 30, 29 / 30)
PAIRED_BELOW = 0.9
LOSS_CLAMP = 10.0


@dataclass(frozen=True)
class PaperScripts(Corruption):
    """Bernoulli masks with the weight 1 / r alone; two antithetic rows (MIRROR) where `is_paired`.

    A sample without a second mask has an empty second row, and all the weight on its first.
    """

    is_paired: bool

    loss_clamp = LOSS_CLAMP

    @property
    def num_rows(self) -> int:
        return 2 if self.is_paired else 1

    @property
    def is_coupled(self) -> bool:
        return self.is_paired

    @property
    def probed(self) -> Corruption:
        return SINGLE  # the scripts measure single masks even where they train pairs

    def corrupt(self, draw: Draw) -> NoisedRows:
        t = float(draw.levels.t[0])
        rates = np.where(draw.eligible, mask_rate(t, draw.eps), 0.0)[None].repeat(self.num_rows, axis=0)
        masks = antithetic_masks(draw.uniforms[0], rates)
        num_used = self.num_rows if t < PAIRED_BELOW else 1
        masks[num_used:] = False
        weights = np.zeros(masks.shape)
        weights[masks] = draw.share / (rates[masks] * num_used)
        return NoisedRows(masks, weights)
