"""The one place that patches paddledet 2.6.0 and bridges Paddle versions.

Every entry names the defect it mends. Nothing here imports Paddle before it is asked to, so that
commands without a model stay quick.
"""

import contextlib
import copy
import importlib
import io
import os
import sys
import types
import warnings
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fcos_recipe.errors import UserError

PADDLEDET = "2.6.0"

# Third-party modules that paddledet imports for tracking, key points, rotated boxes and other
# models, never on FCOS's path. While ppdet is imported an inert stand-in takes their place, so
# that they need not be installed (it declares sklearn==0.0, an empty package) and cost no time.
_STAND_INS = (
    "lap matplotlib motmetrics mpl_toolkits pandas pkg_resources "
    "pyclipper requests scipy shapely skimage sklearn terminaltables"
).split()
# These are optional there, behind `except`: absent is what they are for FCOS.
_ABSENT = "numba paddleslim typeguard visualdl wandb".split()

# Names of paddledet's registry that mean our class instead: stock's, as "module:why".
REPLACED = {
    "FCOS": ("model.fcos", "takes normalised float32 images, four times the bytes"),
    "FCOSHead": ("model.head", "width was fixed to 256 channels; no top-k before NMS"),
    "FCOSLoss": ("model.loss", "NaN without positives; alpha, gamma and reg_weights ignored"),
    "COCODataSet": ("data.dataset", "parsed in every rank; KeyError on missing fields"),
    "TrainReader": ("data.reader", "workers see a stale epoch; normalises on the CPU"),
    "EvalReader": ("data.reader", "normalises on the CPU"),
    "TestReader": ("data.reader", "normalises on the CPU"),
}
MOST_PIXELS = 1 << 27  # of an image: 11585 x 11585, 400 MB when decoded
_stock: dict = {}
_pristine: dict = {}


def before_paddle() -> None:
    """What has to precede the first `import paddle`.

    Paddle 2.6.2 brings a zlib of its own: Python's, loaded after it, crashes in inflateReset2.
    Paddle 3.x warns on import that ccache, which only C++ extensions use, is missing.
    """
    import zlib  # noqa: F401

    # OpenCV allocates what a header promises, up to 3 GB by default; it reads this when imported
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MOST_PIXELS))
    # Paddle's C++ side reports each socket it opens; warnings stay
    os.environ.setdefault("GLOG_minloglevel", "1")
    warnings.filterwarnings("ignore", message="No ccache found")
    # Paddle's own modules, not the user's: nothing the user could do about them.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="paddle")
    warnings.filterwarnings("ignore", message=".*pkg_resources.*")
    # what every BatchNorm does; Paddle says so once a run
    warnings.filterwarnings("ignore", message="When training, we now always track global mean")


def import_paddle():
    """Import Paddle without its advice to keep OMP_NUM_THREADS at 1, where MKL runs at half speed.

    Returns:
        the module.
    """
    with contextlib.redirect_stderr(io.StringIO()):  # errors are exceptions
        import paddle
    return paddle


def autocasts(dtype: str) -> bool:
    """Whether auto_cast takes effect on the device that this process is bound to.

    It decides by lists of devices of its own. `paddle.amp.is_bfloat16_supported` says something
    else: Paddle 3.0.0 raises for a plugin's device, and 3.3.1 asks the plugin instead.

    Args:
        dtype: float16 or bfloat16.
    """
    paddle = import_paddle()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has no effect
        with paddle.amp.auto_cast(dtype=dtype):
            return paddle.framework._dygraph_tracer()._amp_dtype == dtype


def registered_kernels() -> dict[str, set[tuple[str, str]]]:
    """Operator -> (backend, dtype) of each kernel that this Paddle and its plugin have.

    Backends are CPU, GPU, GPUDNN and the plugin's name.
    """
    found = {}
    for operator, keys in import_paddle().framework.core._get_registered_phi_kernels().items():
        parts = (key.strip("()").split(", ") for key in keys)  # "(GPU, STRIDED, float32)"
        found[operator] = {(backend, dtype) for backend, _layout, dtype in parts}
    return found


class _StandIn(types.ModuleType):
    """A module whose every attribute is a class that cannot be made: import works, use does not."""

    __path__: list = []

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*_args, **_kwargs):
            raise ImportError(f"{self.__name__}.{name} is not loaded: FCOS does not need it")

        return type(name, (), {"__init__": refuse})


class _StandInFinder:
    """Import hook that serves `_STAND_INS` and hides `_ABSENT`."""

    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root in _ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if root not in _STAND_INS:
            return None
        # of a loader Python asks only for the two methods below
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec):
        return _StandIn(spec.name)

    def exec_module(self, module):
        pass


def import_ppdet():
    """Import paddledet without what FCOS does not need and without its prints; put ours in place.

    Returns:
        the package `ppdet`.

    Raises:
        UserError: paddledet is missing, or of another version than the patches are made for.
    """
    if _pristine:
        return sys.modules["ppdet"]
    try:
        found = version("paddledet")
    except PackageNotFoundError:
        raise UserError("paddledet is not installed; run: bash scripts/install.sh") from None
    if found != PADDLEDET:
        raise UserError(
            f"paddledet {found} is installed, this recipe needs {PADDLEDET}; "
            f"run: pip install --no-deps paddledet=={PADDLEDET}"
        )
    before_paddle()
    import_paddle()  # before the stand-ins: its setuptools needs the real pkg_resources

    finder, before = _StandInFinder(), {m for m in sys.modules if _root(m) in _STAND_INS}
    # already imported by somebody else: leave it, an import finds it in sys.modules
    sys.meta_path.insert(0, finder)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ppdet
            import ppdet.core.workspace as workspace
    finally:
        sys.meta_path.remove(finder)
        for name in [m for m, v in sys.modules.items() if isinstance(v, _StandIn)]:
            if name not in before:
                del sys.modules[name]
    from ppdet.core.config.schema import extract_schema

    registry = workspace.global_config
    for name, (module, _why) in REPLACED.items():
        _stock[name] = getattr(registry[name].pymodule, name)
        registry[name] = extract_schema(
            getattr(importlib.import_module(f"fcos_recipe.{module}"), name)
        )
    # TrainDataset and EvalDataset look their class up here, not in the registry
    ppdet.data.source.COCODataSet = registry["COCODataSet"].pymodule.COCODataSet
    _pristine.update(_copied(registry))
    return ppdet


def _copied(registry: dict) -> dict:
    """Entries hold modules, which deepcopy refuses: copy each entry and its values one by one."""
    entries = {name: copy.copy(entry) for name, entry in registry.items()}
    for entry in entries.values():
        entry.update({key: copy.deepcopy(value) for key, value in entry.items()})
    return entries


def create(name: str, **arguments):
    """Build a component of the registry by its name, as `ppdet.core.workspace.create`."""
    import_ppdet()
    from ppdet.core import workspace

    return workspace.create(name, **arguments)


def _root(module: str) -> str:
    return module.partition(".")[0]


def stock(name: str) -> type:
    """Stock's own class or transform of that name, also where ours has taken its place.

    Args:
        name: e.g. "FCOSLoss" or "Gt2FCOSTarget".
    """
    import_ppdet()
    if name in _stock:
        return _stock[name]
    import ppdet.data.transform as transform
    from ppdet.core.workspace import global_config

    if hasattr(transform, name):
        return getattr(transform, name)
    return getattr(global_config[name].pymodule, name)


def workspace(data: dict):
    """Fill paddledet's global registry with one config and nothing of an earlier one.

    Stock's registry is process-wide and merges: a second config inherits the first one's values.

    Args:
        data: a resolved config without this recipe's nested keys (`Config.stock_data()`).

    Returns:
        ppdet's global config, an AttrDict.
    """
    import_ppdet()
    from ppdet.core.workspace import global_config, merge_config

    global_config.clear()
    global_config.update(_copied(_pristine))
    merge_config(copy.deepcopy(data))
    return global_config


def set_lr_scheduler(optimizer, scheduler) -> None:
    """Give an optimizer another LR schedule: Paddle 2.5 has no method for it, newer ones do."""
    if hasattr(optimizer, "set_lr_scheduler"):
        optimizer.set_lr_scheduler(scheduler)
    else:
        optimizer._learning_rate = scheduler  # what the method of 2.6 does


def stop_loading(iterator) -> None:
    """End the thread and the worker processes of a DataLoader's iterator before its last batch.

    Paddle ends them when the iterator is collected, but the thread itself and a variable of
    Paddle's module keep it alive until the process ends.
    """
    if iterator._shutdown:
        return
    iterator._exit_thread_expectedly()
    workers = list(getattr(iterator, "_workers", ()))
    if workers:
        iterator._try_shutdown_all(5)
        for worker in workers:
            if worker.is_alive():  # blocked in a write that nobody reads
                worker.kill()
                worker.join()
    else:
        iterator._thread.join(5)  # else Paddle waits whole seconds for it
        iterator._try_shutdown_all()


class _LastResort(_StandInFinder):
    """The stand-ins for what nobody else finds."""

    def find_spec(self, name, path=None, target=None):
        root = sys.modules.get(_root(name))
        if root is not None and not isinstance(root, _StandIn):
            return None  # installed: a part that it lacks is its own affair
        return super().find_spec(name, path, target)


@contextlib.contextmanager
def missing_stand_ins():
    """Import stock as it is installed; a stand-in only for what the machine lacks.

    For the benchmark, whose stock side must not depend on anything else here.
    """
    finder = _LastResort()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


@contextlib.contextmanager
def doubling_without_interpolate():
    """Let FPN double its maps by repetition while a program is traced: the pixels are the same.

    Paddle 3.1 and newer save the scale of nearest_interp as doubles, which its own oneDNN
    instructions ("not support ArrayAttribute<DoubleAttribute>") and paddle2onnx 2.1 ("MUST be
    ir::FloatAttribute") refuse.
    """
    import paddle
    from ppdet.modeling.necks import fpn

    stock_functional = fpn.F

    def interpolate(x, scale_factor, mode):
        assert scale_factor == 2.0 and mode == "nearest", "FPN asks for another interpolation"
        n, _, h, w = paddle.shape(x).unbind()
        rows = x.unsqueeze([3, 5]).tile([1, 1, 1, 2, 1, 2])
        return rows.reshape([n, x.shape[1], h * 2, w * 2])

    fpn.F = types.SimpleNamespace(**{**vars(stock_functional), "interpolate": interpolate})
    try:
        yield
    finally:
        fpn.F = stock_functional


def grad_scaler(enable: bool, init_loss_scaling: float):
    """Paddle's GradScaler, which can skip a step under any NumPy.

    When it lowers the loss scale, Paddle prints float(scale) of a tensor with one dimension, which
    NumPy 2.4 and newer refuse: the first step that overflowed ended the run with a TypeError.
    """
    import paddle

    class Scaler(paddle.amp.GradScaler):
        _scale: Any

        def _update(self):
            if self.is_enable():
                self._scale = self._scale.reshape([])
                super()._update()
                self._scale = self._scale.reshape([1])

    return Scaler(enable=enable, init_loss_scaling=init_loss_scaling)
