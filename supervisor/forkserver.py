"""The small process that forks shims on request, and is the subreaper above them.

For jobd it is a multiprocessing process. That process becomes a fresh interpreter at once, which has
nothing of jobd's (no lock, no descriptor, no threading module) and imports the shim only: it is small,
and so is every shim that it forks. It can be started at any time.
When jobd has gone it stays until nothing is left below it: should a shim be killed, its job comes here,
not to init, and is reaped here. It starts and stops nothing by its own decision. Asked by `supervisor.executor`.

A request is one byte with one descriptor: the shim's end of a fresh channel to the executor.
"""

# pathlib is too large for the small processes
# ruff: noqa: PTH100, PTH120

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys

from supervisor import capture, child, libc, process_tree, reaper, record, shim

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

#: Signals of terminals and service managers. They are meant for jobd; nothing here ends by them.
SIGNALS_OF_OTHERS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

#: Instead of a descriptor: there was none left for it.
NO_DESCRIPTOR = -1
#: What the fresh interpreter runs. It skips `site`, which costs 2 MB, so it is told where this package is.
PROGRAM = "import sys; sys.path.append(sys.argv[1]); from supervisor.forkserver import serve; serve(*sys.argv[2:])"


def become(channel: int, state_dir: str) -> NoReturn:
    """Turn this process, just forked from jobd, into the forkserver."""
    os.set_inheritable(channel, True)
    package_path = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    argv = [sys.executable, "-I", "-S", "-c", PROGRAM, package_path, str(channel), state_dir]
    os.execv(sys.executable, argv)


def serve(channel_fd: str, state_dir: str) -> None:
    """The process. Returns when jobd has gone and no shim is left."""
    channel = socket.socket(fileno=int(channel_fd))
    umask = _settle_down(channel.fileno(), state_dir)
    places, stage = shim.Places(state_dir), child.Stage(umask)
    wakeup_fd = _catch_signals()
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(wakeup_fd, select.POLLIN)
    gc.collect()
    gc.freeze()  # the collector would touch, and so copy, every page that is shared with the shims
    has_master = True
    remains = Remains(places)
    while has_master or remains.has_children():
        for fd, _ in poll.poll():
            if fd == wakeup_fd:
                os.read(wakeup_fd, 4096)
                remains.has_children()
                continue
            end = _next_request(channel)
            if end is None:
                poll.unregister(channel)
                has_master = False
            elif end != NO_DESCRIPTOR:
                _fork_shim(channel, end, places, stage)
    remains.save_output()


def _next_request(channel: socket.socket) -> int | None:
    """The shim's end of its channel, or NO_DESCRIPTOR: then jobd sees it close; None when jobd has gone."""
    try:
        message, fds, _, _ = socket.recv_fds(channel, 1, 1)
    except ConnectionResetError:
        return None
    if not message:
        return None
    return fds[0] if fds else NO_DESCRIPTOR


def _fork_shim(channel: socket.socket, end: int, places: shim.Places, stage: child.Stage) -> None:
    spare = NO_DESCRIPTOR
    try:
        spare = os.dup(end)  # keeps a place for the pidfd
        pid = os.fork()
    except OSError as error:
        if spare != NO_DESCRIPTOR:
            os.close(spare)
        _answer(end, {"what": "not_started", "attempt": None, "reason": f"fork failed: {error.strerror}"}, [])
        return
    if pid:
        os.close(spare)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)  # nobody could be told of it; it has begun nothing yet
            os.close(end)
            return
        _answer(end, {"what": "hello", "pid": pid}, [pidfd])
        os.close(pidfd)
        return
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        channel.detach()
        end = child.keep_only(end)
        libc.become_subreaper(b"jobd-shim")
        shim.Shim(end, places, stage).run()
        code = 0
    except BaseException as error:
        _last_words(error)
    finally:
        os._exit(code)


def _answer(end: int, message: dict[str, object], fds: list[int]) -> None:
    """Speak for the shim, on its channel; then it is the shim's alone."""
    with socket.socket(fileno=end) as channel:
        try:
            text = json.dumps(message).encode()
            if fds:
                socket.send_fds(channel, [text], fds)
            else:
                channel.send(text)
        except OSError:
            pass  # jobd has gone


class Remains:
    """What killed shims leave: children to reap, with a status that is to be kept, and output that nobody reads yet."""

    def __init__(self, places: shim.Places) -> None:
        self._places = places
        self._fifos: dict[str, int] = {}  # name -> a descriptor of it

    def has_children(self) -> bool:
        """Reap the dead; False when there is nobody left."""
        try:
            while (pid := reaper.next_ended()) is not None:
                self._keep_output(pid)
                reaper.bury(pid, self._places.attempts)
        except ChildProcessError:
            return False
        return True

    def _keep_output(self, pid: int) -> None:
        """What is in the FIFO of a killed shim lasts as long as somebody has it open: until another shim has read it.

        A shim that leaves by itself removes its own, and other processes have none.
        """
        for name in [name for name, fd in self._fifos.items() if not os.fstat(fd).st_nlink]:
            os.close(self._fifos.pop(name))
        try:
            if who := process_tree.identity(pid):
                name = f"{who[0]}-{who[1]}"
                flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
                self._fifos[name] = os.open(f"{self._places.fifos}/{name}", flags)
        except OSError:
            pass

    def save_output(self) -> None:
        """Before this process leaves: write into the logs what no other shim has come for."""
        for name in self._fifos:
            try:
                _fd, kept = record.lock(f"{self._places.attempts}/{name}")  # until we leave
                fifo = capture.Fifo(f"{self._places.fifos}/{name}")
                fifo.reopen()
                log = f"{self._places.logs}/{kept['log']}"
                capture.Capture(fifo, log, kept["terms"]["log_max_bytes"]).close()
            except (OSError, ValueError):
                pass  # another shim has come


def _settle_down(channel_fd: int, state_dir: str) -> int:
    """Leave what came with the start: session, folder, streams, descriptors, signals. The umask it had."""
    os.setsid()
    os.chdir("/")
    libc.become_subreaper(b"jobd-forkserver")
    null = os.open(os.devnull, os.O_RDWR)
    bugs = os.open(f"{state_dir}/shims.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o640)
    for fd, place in ((null, 0), (null, 1), (bugs, 2)):
        os.dup2(fd, place)
    os.closerange(3, channel_fd)
    os.closerange(channel_fd + 1, os.sysconf("SC_OPEN_MAX"))
    os.set_inheritable(channel_fd, False)
    for signum in child.ALL_SIGNALS - {signal.SIGKILL, signal.SIGSTOP, *child.IGNORED_BY_PYTHON}:
        signal.signal(signum, signal.SIG_DFL)
    return os.umask(0o027)


def _catch_signals() -> int:
    """A pipe that becomes readable when a child has ended. The shims inherit the handlers."""
    wakeup_r, wakeup_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wakeup_w, warn_on_full_buffer=False)
    for signum in (signal.SIGCHLD, *SIGNALS_OF_OTHERS):
        signal.signal(signum, _noted)
    return wakeup_r


def _noted(_signum: int, _frame: object) -> None:
    """Handled and not ignored: an ignored signal would stay ignored in the jobs."""


def _last_words(error: BaseException) -> None:
    """A bug. What it has to say goes to STATE/shims.log."""
    import traceback  # only when it is needed: the process is to stay small

    traceback.print_exception(error)
