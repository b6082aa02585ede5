"""Let Ctrl-C, SIGTERM and SIGHUP stop the training loop between two steps."""

import ctypes
import multiprocessing
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fcos_recipe import exit_codes

TRAINING = "ended outside of training; no checkpoint was written"
_LIBC = ctypes.CDLL(None)
_active = False
_mask: set | None = None  # signal mask to restore after a fork
_guarded: set[int] = set()  # signals that `ending_at_once` waits for
_asked = False  # a signal has already ended the training of this process


def requests() -> set[int]:
    """SIGTERM and, unless this process ignores it as under `nohup`, SIGHUP."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return {signal.SIGTERM} if ignored else {signal.SIGTERM, signal.SIGHUP}


def end(number: int, words: str = TRAINING) -> None:
    """End this process, in which no training runs, with one line and exit code 128 + `number`."""
    text = f"{signal.Signals(number).name}: {words}\n"
    with suppress(OSError):
        os.write(2, text.encode())
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(128 + number)


@contextmanager
def ending_at_once(words: str = TRAINING) -> Iterator[None]:
    """Before and after a `StopRequest`, SIGTERM and SIGHUP `end` the process.

    Python runs its handlers only between two instructions, which takes long while native code is
    imported or waits for other ranks, and Paddle installs handlers that print a C++ stack. So
    the main thread, and every thread that it starts, blocks the signals, and one thread waits for
    them. Only for a process that exists for one command; in other threads it does nothing.

    Args:
        words: what the line says.
    """
    global _asked, _guarded
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers, main, over = requests(), threading.get_ident(), threading.Event()
    before, _asked = signal.pthread_sigmask(signal.SIG_BLOCK, numbers), False

    def wait() -> None:
        while (number := signal.sigwait(numbers)) and not over.is_set():
            if _active:
                signal.pthread_kill(main, number)
            elif not _asked:
                end(number, words)

    thread = threading.Thread(target=wait, name="signals before training", daemon=True)
    thread.start()
    _guarded = numbers
    try:
        yield
    finally:
        _guarded = set()
        over.set()
        assert thread.ident is not None
        signal.pthread_kill(thread.ident, signal.SIGTERM)
        thread.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def joining() -> Iterator[None]:
    """Inside `ending_at_once`: native code waits for other ranks and holds the interpreter's lock.

    No Python code can run then, so that the kernel ends the process, and a child, which sees its
    standard input end, writes the line.
    """
    if not _guarded:
        yield
        return
    line = "ended by a signal while it waited for the other ranks; no checkpoint was written"
    say = ["sh", "-c", 'read -r joined || echo "$0" >&2', f"process {os.getpid()}: {line}"]
    with subprocess.Popen(say, stdin=subprocess.PIPE, start_new_session=True) as child:
        handlers = {number: signal.signal(number, signal.SIG_DFL) for number in _guarded}
        mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, _guarded)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            child.communicate(b"joined\n")


class StopRequest:
    """Inside `with`, the first signal only sets `signal`; a second Ctrl-C exits at once.

    The signals are Ctrl-C and those of `requests`.

    A thread reads the signals, so that the second Ctrl-C also works while the main thread is in
    native code, for example in a collective that hangs. In a thread other than the main thread this
    class does nothing.

    Data workers that are forked meanwhile ignore these signals to the whole process group, as
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
            self._reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            numbers = {signal.SIGINT, *requests()}
            self._old = {n: signal.signal(n, self._handle) for n in numbers}
            threading.Thread(target=self._listen, name="signals", daemon=True).start()
            _active = True
            self._old_mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        return self

    def __exit__(self, *_) -> None:
        global _active, _asked
        if self._main:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._old_mask)
            # after SIGTERM or SIGHUP, further ones of a launcher are ignored
            _asked = self.own_process and self.signal in self._old.keys() - {signal.SIGINT}
            _active = False
            for number, handler in self._old.items():
                again = _asked and number != signal.SIGINT
                signal.signal(number, signal.SIG_IGN if again else handler)
            signal.set_wakeup_fd(self._old_fd)
            self._writer.close()  # ends the thread

    def _listen(self) -> None:
        while number := self._reader.recv(1):
            if number[0] not in self._old:
                continue
            if self.signal is None:
                self.signal = number[0]
                try:
                    print(
                        f"{signal.Signals(number[0]).name}: a checkpoint is saved after this step; "
                        "press Ctrl-C again to exit at once", flush=True,
                    )  # fmt: skip
                except OSError:  # the terminal has gone, and with it what else would be printed
                    null = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(null, 1)
                    os.dup2(null, 2)
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
    global _guarded
    if not _active:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _guarded)  # the waiting thread is not here
        _guarded = set()
        return
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
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
