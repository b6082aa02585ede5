"""Training recipe for FCOS on PaddlePaddle, around PaddleDetection 2.6."""

from fcos_recipe.compat import before_paddle

__version__ = "0.1.0"

before_paddle()
