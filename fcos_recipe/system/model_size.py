"""`python -m fcos_recipe.system.model_size CONFIG [KEY=VALUE ...]`: how many numbers a model has.

A process of its own for the doctor, which itself stays free of Paddle.
"""

import sys

from fcos_recipe import compat
from fcos_recipe.config import load_config

if __name__ == "__main__":
    config = load_config(sys.argv[1], sys.argv[2:])
    compat.workspace(config.stock_data())
    model = compat.create(config.data["architecture"])
    print(sum(value.size for value in model.state_dict().values()))
