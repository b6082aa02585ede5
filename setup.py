"""Package metadata. Dependencies are in requirements.txt; scripts/install.sh installs them.

There is no install_requires on purpose: `pip install -e .` must never replace the Paddle, NumPy
or OpenCV that a vendor's image brings, and paddledet 2.6.0 itself only installs with --no-deps.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


class BuildWithConfigs(build_py):
    """Also copies configs/ and tools/ into the package; fcos_recipe/places.py finds them there."""

    def run(self):
        super().run()
        for folder, kind in () if self.editable_mode else (("configs", "*.yml"), ("tools", "*.py")):
            for source in (HERE / folder).rglob(kind):
                target = Path(self.build_lib, "fcos_recipe", source.relative_to(HERE))
                target.parent.mkdir(parents=True, exist_ok=True)
                self.copy_file(str(source), str(target))


setup(
    name="fcos-recipe",
    version=re.search(r'__version__ = "(.+?)"', (HERE / "fcos_recipe/__init__.py").read_text())[1],
    description="Training recipe for FCOS-R50-FPN on PaddlePaddle: Iluvatar, NVIDIA or CPU",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    project_urls={
        "PaddleDetection": "https://github.com/PaddlePaddle/PaddleDetection",
        "Paper": "https://arxiv.org/abs/1904.01355",
    },
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13)),
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["fcos_recipe", "fcos_recipe.*"]),
    package_data={
        "fcos_recipe": ["py.typed"],
        "fcos_recipe.report": ["style.css"],
        "fcos_recipe.datasets.look": ["page.html", "page.js"],
    },
    cmdclass={"build_py": BuildWithConfigs},
    entry_points={"console_scripts": ["fcos = fcos_recipe.cli:main"]},
)
