"""Weights to detections on images: `Predictor(weights)(images)`. Importing it costs no Paddle."""

from fcos_recipe.predict.predictor import Predictor
from fcos_recipe.predict.results import Detections

__all__ = ["Detections", "Predictor"]
