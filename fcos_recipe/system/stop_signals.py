"""Let Ctrl-C and SIGTERM stop the training loop between two steps."""

import ctypes
import multiprocessing
import os
import signal
import socket
import threading

from fcos_recipe import exit_codes

_LIBC = ctypes.CDLL(None)
_active = False
_mask: set | None = None  # signal mask to restore after a fork


class StopRequest:
    """Inside `with`, the first Ctrl-C or SIGTERM only sets `signal`; a second Ctrl-C exits at once.

    A thread reads the signals, so that the second Ctrl-C also works while the main thread is in
    native code, for example in a collective that hangs. In a thread other than the main thread this
    class does nothing.

    Data workers that are forked meanwhile ignore a Ctrl-C or SIGTERM to the whole process group, as
    terminals, Paddle's launcher and batch systems send it, because without workers the step could
    not finish. They accept SIGTERM only from their parent, and end when it ends; Paddle's own check
    of the parent does not end a worker whose pipe is full.

    Args:
        own_process: False: the process has other work, so a second Ctrl-C only raises
            KeyboardInterrupt in the main thread.
    """

    def __init__(self, own_process: bool = True):
        self.own_process, self._interrupts = own_process, 0
        self.signal: int | None = None  #: number of the first signal received

    def _handle(self, number: int, _frame) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1 and not self.own_process:
            raise KeyboardInterrupt("interrupted before a checkpoint was saved")

    def __enter__(self) -> "StopRequest":
        global _active
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            _active = True
            self._reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            numbers = (signal.SIGINT, signal.SIGTERM)
            self._old = {n: signal.signal(n, self._handle) for n in numbers}
            threading.Thread(target=self._listen, name="signals", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        global _active
        if self._main:
            _active = False
            for number, handler in self._old.items():
                # after SIGTERM, further SIGTERMs of a launcher are ignored
                asked_again = self.own_process and number == signal.SIGTERM == self.signal
                signal.signal(number, signal.SIG_IGN if asked_again else handler)
            signal.set_wakeup_fd(self._old_fd)
            self._writer.close()  # ends the thread

    def _listen(self) -> None:
        while number := self._reader.recv(1):
            if number[0] not in self._old:
                continue
            if self.signal is None:
                self.signal = number[0]
                print(
                    f"{signal.Signals(number[0]).name}: a checkpoint is saved after this step; "
                    "press Ctrl-C again to exit at once", flush=True,
                )  # fmt: skip
            elif number[0] == signal.SIGINT and self.own_process:
                for child in multiprocessing.active_children():
                    child.kill()
                os._exit(exit_codes.INTERRUPTED)
        self._reader.close()


def _before_fork() -> None:
    """Block SIGTERM: OpenBLAS starts threads in the child before `_in_child`, which inherit it."""
    global _mask
    if _active:
        _mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _in_parent() -> None:
    global _mask
    if _mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _mask)
        _mask = None


def _in_child() -> None:
    """In a process forked during training, ignore signals that are meant for its parent."""
    if not _active:
        return
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: sent when the parent dies
    parent = os.getppid()

    def obey():
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent == os.getppid():
            continue
        _free_shared_memory()
        os._exit(exit_codes.OK)

    threading.Thread(target=obey, name="signals", daemon=True).start()


def _free_shared_memory() -> None:
    """Remove this worker's batches in /dev/shm that were not read."""
    import paddle

    paddle.framework.core._cleanup_mmap_fds()


os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
