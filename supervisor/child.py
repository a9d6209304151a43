"""How the main process of an attempt comes to be. Used by the shim; stdlib only.

There are two ways with one result. `spawn` (vfork inside) costs half of `fork`, but it stops the shim
until the program is loaded, and it cannot change the user or set limits. So `fork` is taken for jobs
that ask for those, and on machines with a network or FUSE file system mounted, where loading a
program may take for ever: the shim has to go on then, so that timeout and stop still work.
"""

from __future__ import annotations

import errno
import math
import os
import pwd
import resource
import signal

from supervisor import environment, libc, program
from supervisor.order import UnstartableError
from supervisor.trust import weakness

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from supervisor.order import Order

#: Between SIGXCPU, which a job may catch, and SIGKILL.
CPU_GRACE_S = 5
#: The longest reason from a child that could not load its program; a pipe takes it whole.
MAX_STATUS_BYTES = 4096
#: Begins a reason that is no fault of the job.
SHORTAGE_MARK = "\0"
#: There is room for nothing new right now. Not the job's fault, and worth another try later.
SHORTAGES = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT})
#: Signals that Python ignores. A job must not inherit that.
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
ALL_SIGNALS = frozenset(signal.valid_signals())


class ShortageError(Exception):
    """Nothing was started for lack of processes, memory, descriptors or disk."""


class Stage:
    """What every main process starts from. Its stdin is the shim's own, which is /dev/null."""

    __slots__ = ("base_env", "umask")

    def __init__(self, umask: int) -> None:
        self.base_env = environment.base()
        self.umask = umask  # of jobs that name none


def spawn(order: Order, stage: Stage, output_fd: int, begin: Callable[[], None]) -> int:
    """Start it as this user, without limits; its pid, once the program is loaded. UnstartableError, ShortageError.

    `begin` is called right before. The shim lends its own folder and umask for the moment.
    """
    own_umask = os.umask(stage.umask if order["umask"] is None else order["umask"])
    try:
        _enter(order["dir"])
        env = environment.of_job(order, stage.base_env)
        path, argv = program.find(order["command"], env.get("PATH", ""))
        begin()
        try:
            return libc.spawn(path, argv, env, output_fd)
        except (OSError, ValueError) as error:
            raise _not_loaded(error, path) from None
    finally:
        os.chdir("/")
        os.umask(own_umask)


def needs_fork(order: Order) -> bool:
    """True if `spawn` cannot do what is asked."""
    return bool(order["user"] or order["limits"])


def fork(order: Order, stage: Stage, output_fd: int, begin: Callable[[], None]) -> tuple[int, int]:
    """Start it the long way: its pid, and a pipe that ends empty once the program is loaded, else with the reason.

    `begin` is called right before. ShortageError.
    """
    begin()
    try:
        status_r, status_w = os.pipe2(os.O_CLOEXEC)
    except OSError as error:
        raise ShortageError(f"no pipe can be made: {error.strerror}") from None
    # No signal may find the child before it has put off the shim's handlers.
    own_mask = signal.pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
    try:
        pid = os.fork()
        if pid == 0:
            _become_the_job(order, stage, output_fd, status_w)
    except OSError as error:
        os.close(status_r)
        raise ShortageError(f"fork failed: {error.strerror}") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, own_mask)
        os.close(status_w)
    return pid, status_r


def keep_only(fd: int) -> int:
    """Close all but the three streams and this descriptor; its new number. For a child that goes its own way."""
    if fd != 3:
        os.dup2(fd, 3)
    os.set_inheritable(3, False)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    return 3


# ---- in the child, between fork and exec ---------------------------------------------------------


def _become_the_job(order: Order, stage: Stage, output_fd: int, status_fd: int) -> NoReturn:
    text = "could not load the program"
    try:
        _detach(output_fd)
        status_fd = keep_only(status_fd)
        os.umask(stage.umask if order["umask"] is None else order["umask"])
        _set_limits(order["limits"])
        base_env = environment.base(_become(order["user"])) if order["user"] else stage.base_env
        _enter(order["dir"])
        env = environment.of_job(order, base_env)
        path, argv = program.find(order["command"], env.get("PATH", ""))
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        try:
            os.execve(path, argv, env)
        except (OSError, ValueError) as error:
            raise _not_loaded(error, path) from None
    except ShortageError as error:
        text = f"{SHORTAGE_MARK}{error}"
    except UnstartableError as error:
        text = str(error)
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
    finally:
        os.write(status_fd, text.encode(errors="replace")[:MAX_STATUS_BYTES])
        os._exit(127)


def _detach(output_fd: int) -> None:
    """Leave the shim's signals, session and streams."""
    signal.set_wakeup_fd(-1)
    for signum in ALL_SIGNALS - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(signum, signal.SIG_DFL)
    os.setsid()
    os.dup2(output_fd, 1)
    os.dup2(output_fd, 2)


def _account_of(user: str) -> pwd.struct_passwd:
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        raise UnstartableError(f"no such user: {user}: create it, or name another in `user`") from None
    if os.geteuid() != 0 and account.pw_uid != os.geteuid():
        raise UnstartableError(f"cannot run as user {user}: only root can start jobs of others: run jobd as root")
    return account


def _become(user: str) -> pwd.struct_passwd:
    """Groups, group, user: in this order, and looked at afterwards."""
    account = _account_of(user)
    uid, gid = account.pw_uid, account.pw_gid
    if os.geteuid() != 0:
        return account  # it is who we are
    try:
        os.fchown(1, uid, gid)  # so that the job may open /dev/stdout and /dev/stderr
        os.initgroups(user, gid)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise UnstartableError(
            f"cannot become user {user}: {error.strerror}: see that jobd has the rights of root"
        ) from None
    if os.getresuid() != (uid,) * 3 or os.getresgid() != (gid,) * 3 or set(os.getgroups()) - _groups_of(account):
        raise UnstartableError(f"cannot become user {user}: some rights of root were left: report this as a bug")
    return account


def _groups_of(account: pwd.struct_passwd) -> set[int]:
    return {account.pw_gid, *os.getgrouplist(account.pw_name, account.pw_gid)}


def _set_limits(limits: dict[str, Any]) -> None:
    for name, value in limits.items():
        try:
            if name == "nice":
                os.setpriority(os.PRIO_PROCESS, 0, value)
                continue
            kind = _RESOURCES[name]
            soft = math.ceil(value)
            resource.setrlimit(kind, (soft, soft + CPU_GRACE_S if kind == resource.RLIMIT_CPU else soft))
        except (OSError, ValueError) as error:
            what = name.removesuffix("_bytes").removesuffix("_s")
            problem = f"cannot set limits.{what} to {value}: {error}"
            raise UnstartableError(f"{problem}: lower it, or raise the limit that jobd itself has") from None


_RESOURCES = {
    "memory_bytes": resource.RLIMIT_AS,
    "cpu_time_s": resource.RLIMIT_CPU,
    "open_files": resource.RLIMIT_NOFILE,
    "processes": resource.RLIMIT_NPROC,
}


# ---- for both ways -------------------------------------------------------------------------------


def _enter(folder: str) -> None:
    try:
        os.chdir(folder)
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        what = "no such folder" if missing else f"cannot enter folder ({getattr(error, 'strerror', error)})"
        raise UnstartableError(f"{what}: {folder}: create it or mend its permissions, or set another `dir`") from None
    if os.geteuid() == 0 and (problem := weakness(folder)):
        raise UnstartableError(f"not safe as the folder of root's job: {problem}, or set `user`, or another `dir`")


def _not_loaded(error: OSError | ValueError, path: str) -> Exception:
    """The kernel has refused a program that `program.find` had found."""
    code = error.errno if isinstance(error, OSError) else None
    if code in SHORTAGES:
        return ShortageError(f"could not start {path}: {error}")
    if code == errno.ENOENT:
        return UnstartableError(f"cannot run {path}: its interpreter is missing: see the first line of the file")
    if code == errno.ENOEXEC:
        return UnstartableError(
            f"not a program: {path}: begin it with a line like #!/bin/sh, or write the command as text"
        )
    if code == errno.E2BIG:
        return UnstartableError(f"command and environment are too long for {path}: shorten `env` or the command")
    return UnstartableError(f"cannot run {path}: {error}")
