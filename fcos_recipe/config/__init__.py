"""Load, check and scale configs. Imports no Paddle."""

from fcos_recipe.config.load import Config, load_config

__all__ = ["Config", "load_config"]
