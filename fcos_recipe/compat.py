"""The one place that patches paddledet 2.6.0 and bridges Paddle versions.

Every entry names the defect that it corrects. Importing this module does not import Paddle, so that
commands without a model start quickly.
"""

import contextlib
import copy
import ctypes
import importlib
import io
import logging
import os
import re
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fcos_recipe.errors import UserError
from fcos_recipe.plugins import Plugin, execute

PADDLEDET = "2.6.0"

# Third-party modules that paddledet imports for tracking, key points, rotated boxes and other
# models; FCOS uses none of them. While ppdet is imported, empty stand-ins replace them, so that
# they need not be installed (paddledet requires sklearn==0.0, an empty package) and take no time.
_STAND_INS = (
    "lap matplotlib motmetrics mpl_toolkits pandas pkg_resources "
    "pyclipper requests scipy shapely skimage sklearn terminaltables"
).split()
# paddledet imports these inside `try` and works without them, so they are reported as missing.
_ABSENT = "numba paddleslim typeguard visualdl wandb".split()

# Class in paddledet's registry -> (our module that replaces it, the defect of paddledet's class).
REPLACED = {
    "FCOS": ("model.fcos", "needs normalised float32 images, four times the size of uint8"),
    "FCOSHead": ("model.head", "has a fixed width of 256 channels and no top-k before NMS"),
    "FCOSLoss": ("model.loss", "is NaN without positives; ignores alpha, gamma, reg_weights"),
    "COCODataSet": ("data.dataset", "parses the file in every rank; KeyError on missing fields"),
    "TrainReader": ("data.reader", "gives workers an old epoch number; normalises on the CPU"),
    "EvalReader": ("data.reader", "normalises on the CPU"),
    "TestReader": ("data.reader", "normalises on the CPU"),
}
MOST_PIXELS = 1 << 27  # largest accepted image: 11585 x 11585, 400 MB when decoded
_stock: dict = {}
_pristine: dict = {}
# Module of a user's file -> the components and the transforms that it registered.
_registered: dict[str, tuple[dict, dict]] = {}
_operators: dict[str, type] = {}  # transforms of the user in the config that the registry has


def before_paddle() -> None:
    """Prepare the process for its first `import paddle`.

    Paddle 2.6.2 contains its own zlib; Python's zlib crashes in inflateReset2 if it is loaded after
    Paddle. Paddle 3.x warns on import that ccache is missing, which only C++ extensions use.
    """
    import zlib  # noqa: F401

    if not any(isinstance(finder, _QuietPaddle) for finder in sys.meta_path):
        sys.meta_path.insert(0, _QuietPaddle())
    # OpenCV allocates the size that an image's header states, up to 3 GB by default. It reads this
    # limit when it is imported.
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MOST_PIXELS))
    # hides a line for each TIFF file with a tag of its own; `dataset verify` reports such files
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    # hides what FFmpeg prints of a damaged video, which is reported in one line
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    # hides a message for each socket that Paddle opens; warnings are still shown
    os.environ.setdefault("GLOG_minloglevel", "1")
    warnings.filterwarnings("ignore", message="No ccache found")
    # caused by Paddle's own modules: the user could not act on them
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="paddle")
    warnings.filterwarnings("ignore", message=".*pkg_resources.*")
    # matplotlib reports each font without the wanted weight, where it takes another weight of it
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    # describes what every BatchNorm does
    warnings.filterwarnings("ignore", message="When training, we now always track global mean")


# The helper process of `quietly`: it prints what it was given when the last writer is gone.
_KEEPER = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())"
# What Paddle prints before it raises the error of its library, which gives the same path and why.
_SAID_BY_THE_ERROR = re.compile("Error: Can not import paddle core while this file exists: .*\n")


@contextlib.contextmanager
def quietly(native: bool = False) -> Iterator[None]:
    """Hide what other libraries print inside this context, and show it if an exception leaves it.

    Args:
        native: also hide what C++ code writes to file descriptors 1 and 2. A helper process holds
            this text, so that it is shown, too, if the process dies inside. It concerns the whole
            process: no other thread should print at the same time.
    """
    sink: Any = io.StringIO()
    keeper = None
    if native:
        _flush()
        command = [sys.executable, "-ISc", _KEEPER]
        # a session of its own: Ctrl-C does not reach it
        keeper = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=2, text=True, bufsize=1, start_new_session=True
        )
        sink, real = keeper.stdin, [os.dup(1), os.dup(2)]
    failed, handlers = False, logging.root.handlers[:]
    try:
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            if native:
                os.dup2(sink.fileno(), 1)
                os.dup2(sink.fileno(), 2)
            yield
    except Exception as error:
        failed = not isinstance(error, UserError)  # which says everything itself
        raise
    finally:
        logging.root.handlers[:] = handlers  # logging.warning adds one that writes to the sink
        if keeper is not None:
            _flush()
            for number, copy_of_it in enumerate(real, start=1):
                os.dup2(copy_of_it, number)
                os.close(copy_of_it)
            if not failed:
                keeper.kill()
            sink.close()
            keeper.wait()
        elif failed:
            sys.stderr.write(_SAID_BY_THE_ERROR.sub("", sink.getvalue()))


def _flush() -> None:
    """Write out what Python and the C library have buffered for the console."""
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)


class _QuietPaddle:
    """Import hook that makes the first `import paddle`, wherever it stands, a quiet one.

    It hides Paddle's advice to set OMP_NUM_THREADS to 1, with which MKL runs at half speed.
    """

    def find_spec(self, name, path=None, target=None):
        if name != "paddle":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute_module = spec.loader.exec_module

        def exec_module(module):
            with quietly():
                execute_module(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def import_paddle():
    """Import Paddle and return the module."""
    import paddle

    return paddle


def init_parallel_env() -> None:
    """Join the launcher's process group, without Paddle's list of all flags that were changed."""
    parallel = import_paddle().distributed.parallel
    if hasattr(parallel, "_print_modified_flags"):
        parallel._print_modified_flags = lambda _flags: None
    parallel.init_parallel_env()


def autocasts(dtype: str) -> bool:
    """Whether auto_cast takes effect on this process's device.

    auto_cast decides this from its own lists of devices. `paddle.amp.is_bfloat16_supported` uses
    another rule: Paddle 3.0.0 raises an error for a plugin's device, 3.3.1 asks the plugin.

    Args:
        dtype: float16 or bfloat16.
    """
    paddle = import_paddle()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warning that auto_cast has no effect
        with paddle.amp.auto_cast(dtype=dtype):
            return paddle.framework._dygraph_tracer()._amp_dtype == dtype


def registered_kernels() -> dict[str, set[tuple[str, str]]]:
    """Operator -> (backend, dtype) of each kernel in the installed Paddle and its device plugin.

    Backends are CPU, GPU, GPUDNN and the plugin's name.
    """
    found = {}
    for operator, keys in import_paddle().framework.core._get_registered_phi_kernels().items():
        parts = (key.strip("()").split(", ") for key in keys)  # "(GPU, STRIDED, float32)"
        found[operator] = {(backend, dtype) for backend, _layout, dtype in parts}
    return found


class _StandIn(types.ModuleType):
    """An empty module: anything can be imported from it, but using it raises ImportError."""

    __path__: list = []

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*_args, **_kwargs):
            raise ImportError(f"{self.__name__}.{name} is not loaded: FCOS does not need it")

        return type(name, (), {"__init__": refuse})


class _StandInFinder:
    """Import hook that replaces `_STAND_INS` and reports `_ABSENT` as missing."""

    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root in _ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if root not in _STAND_INS:
            return None
        # the two methods below are all that Python needs of a loader
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec):
        return _StandIn(spec.name)

    def exec_module(self, module):
        pass


def import_ppdet():
    """Import paddledet and register our classes in place of its own (`REPLACED`).

    Modules that FCOS does not need are not imported, and what paddledet prints is hidden.

    Returns:
        the package `ppdet`.

    Raises:
        UserError: paddledet is missing, or is not the version that these patches are for.
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
    import_paddle()  # before the stand-ins: Paddle's setuptools needs the real pkg_resources

    finder, before = _StandInFinder(), {m for m in sys.modules if _root(m) in _STAND_INS}
    # modules imported before (`before`) stay: Python finds them in sys.modules
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
    # TrainDataset and EvalDataset look for their class here, not in the registry
    ppdet.data.source.COCODataSet = registry["COCODataSet"].pymodule.COCODataSet
    _pristine.update(_copied(registry))
    return ppdet


def _copied(registry: dict) -> dict:
    """Copy the registry's entries one by one: they hold modules, which deepcopy cannot copy."""
    entries = {name: copy.copy(entry) for name, entry in registry.items()}
    for entry in entries.values():
        entry.update({key: copy.deepcopy(value) for key, value in entry.items()})
    return entries


def create(name: str, **arguments):
    """Build a component of paddledet's registry, as `ppdet.core.workspace.create` does."""
    import_ppdet()
    from ppdet.core import workspace

    return workspace.create(name, **arguments)


def _root(module: str) -> str:
    return module.partition(".")[0]


def stock(name: str) -> type:
    """Return paddledet's own class or transform, even where this recipe replaces it.

    Args:
        name: e.g. "FCOSLoss" or "Gt2FCOSTarget", or a transform of the user's plugins.

    Raises:
        UserError: there is none of this name.
    """
    import_ppdet()
    if found := _stock.get(name) or _operators.get(name):
        return found
    import ppdet.data.transform as transform
    from ppdet.core.workspace import global_config

    if hasattr(transform, name):
        return getattr(transform, name)
    if name not in global_config:
        raise UserError(f"{name}: no class of PaddleDetection, nor of the config's plugins")
    return getattr(global_config[name].pymodule, name)


def is_users(operator: object) -> bool:
    """Whether a transform is from the user's plugins."""
    return type(operator) in _operators.values()


def _register(plugin: Plugin) -> None:
    """Execute a user's file, and add what it registers to the registry of the present config.

    paddledet keeps transforms for the whole process and refuses a name that it has. They are
    taken out again, so that another config in this process can use another file.
    """
    from ppdet.core.workspace import global_config
    from ppdet.data.transform import operators

    if plugin.module not in _registered:
        before, count = {*global_config}, len(operators.registered_ops)
        try:
            execute(plugin)
        finally:
            names = operators.registered_ops[count:]
            del operators.registered_ops[count:]
            classes = {name: getattr(operators.BaseOperator, name) for name in names}
            own = {n: c for n, c in classes.items() if c.__module__ == plugin.module}
            for name in own:
                delattr(operators.BaseOperator, name)
        new = {n: entry for n, entry in global_config.items() if n not in before}
        _registered[plugin.module] = (_copied(new), own)
    components, own = _registered[plugin.module]
    global_config.update(_copied(components))
    _operators.update(own)


def workspace(data: dict, plugins: Sequence[Plugin] = ()):
    """Fill paddledet's global registry with one config and nothing of an earlier one.

    paddledet merges each config into the same registry, so that a second config in one process
    would inherit values of the first.

    Args:
        data: a resolved config without this recipe's nested keys (`Config.stock_data()`).
        plugins: files of the user whose classes the config uses.

    Returns:
        ppdet's global config, an AttrDict.

    Raises:
        UserError: a file of the user fails.
    """
    import_ppdet()
    from ppdet.core.workspace import global_config, merge_config

    global_config.clear()
    global_config.update(_copied(_pristine))
    _operators.clear()
    for plugin in plugins:
        _register(plugin)
    merge_config(copy.deepcopy(data))
    return global_config


def set_lr_scheduler(optimizer, scheduler) -> None:
    """Replace an optimizer's LR schedule; Paddle 2.5 has no method for it."""
    if hasattr(optimizer, "set_lr_scheduler"):
        optimizer.set_lr_scheduler(scheduler)
    else:
        optimizer._learning_rate = scheduler  # as the method of Paddle 2.6 does


def stop_loading(iterator) -> None:
    """End the thread and worker processes of a DataLoader's iterator before its last batch.

    Paddle ends them only when the iterator is garbage-collected, which never happens because the
    thread itself and a variable of Paddle's module refer to it.
    """
    if iterator._shutdown:
        return
    iterator._exit_thread_expectedly()
    workers = list(getattr(iterator, "_workers", ()))
    if workers:
        iterator._try_shutdown_all(5)
        for worker in workers:
            if worker.is_alive():  # blocked while writing to a pipe that is no longer read
                worker.kill()
                worker.join()
    else:
        iterator._thread.join(5)  # else Paddle waits whole seconds for it
        iterator._try_shutdown_all()


class _LastResort(_StandInFinder):
    """Stand-ins only for modules that are not installed."""

    def find_spec(self, name, path=None, target=None):
        root = sys.modules.get(_root(name))
        if root is not None and not isinstance(root, _StandIn):
            return None  # the package is installed, only this part of it is missing
        return super().find_spec(name, path, target)


@contextlib.contextmanager
def missing_stand_ins():
    """Let paddledet be imported as installed, with stand-ins only for missing modules.

    The benchmark measures unpatched paddledet in this way.
    """
    finder = _LastResort()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


@contextlib.contextmanager
def doubling_without_interpolate():
    """Inside this context, FPN enlarges its maps by repeating pixels; the values are the same.

    Used for export: Paddle 3.1 and newer save the scale of nearest_interp as doubles, which their
    oneDNN instructions ("not support ArrayAttribute<DoubleAttribute>") and paddle2onnx 2.1 ("MUST
    be ir::FloatAttribute") do not accept.
    """
    import paddle
    from ppdet.modeling.necks import fpn

    stock_functional = fpn.F

    def interpolate(x, scale_factor, mode):
        assert scale_factor == 2.0 and mode == "nearest", "FPN uses another interpolation"
        n, _, h, w = paddle.shape(x).unbind()
        rows = x.unsqueeze([3, 5]).tile([1, 1, 1, 2, 1, 2])
        return rows.reshape([n, x.shape[1], h * 2, w * 2])

    fpn.F = types.SimpleNamespace(**{**vars(stock_functional), "interpolate": interpolate})
    try:
        yield
    finally:
        fpn.F = stock_functional


def grad_scaler(enable: bool, init_loss_scaling: float):
    """Build a `paddle.amp.GradScaler` that also works with NumPy 2.4 and newer.

    When Paddle lowers the loss scale, it prints float(scale) of a tensor with one dimension. NumPy
    2.4 refuses this conversion, so that the first overflow ended the run with a TypeError.

    Args:
        enable: False: the scaler does nothing.
        init_loss_scaling: the first loss scale.
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
