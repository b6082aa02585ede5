"""Weights to detections on images: `Predictor(weights)(images)`. Importing it costs no Paddle."""

from fcos_recipe.predict.predictor import Detections, Predictor

__all__ = ["Detections", "Predictor"]
