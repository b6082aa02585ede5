"""Training recipe for FCOS on PaddlePaddle, around PaddleDetection 2.6."""

__version__ = "0.1.0"
