"""mdmscale: training for masked diffusion language models, with variance-reduced objectives."""

__version__ = "0.1.0"
