"""What to run: configs, their schema, and the learning rate's arithmetic. Imports no Paddle."""

from fcos_recipe.config.load import Config, load_config

__all__ = ["Config", "load_config"]
