"""The environment of a job: what it holds, and the small format of `env_file`. Used by the shim. Stdlib only."""

# pathlib is too large for the small processes
# ruff: noqa: PTH120

from __future__ import annotations

import errno
import os
import pwd
import stat
import sys

from supervisor.order import UnstartableError
from supervisor.trust import weakness

TYPE_CHECKING = False
if TYPE_CHECKING:
    from supervisor.order import Order

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: An env_file holds some settings; whatever is longer is not one.
MAX_ENV_FILE_BYTES = 64 * 1024


def base(account: pwd.struct_passwd | None = None) -> dict[str, str]:
    """What every job of this account finds; without one, the account that runs the shim."""
    if account is None:
        account = own_account()
    return {
        # The interpreter's own folder comes last: it is where jobctl was installed.
        "PATH": f"{PATH}:{os.path.dirname(sys.executable)}",
        "HOME": account.pw_dir or "/",
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "SHELL": account.pw_shell or "/bin/sh",
        "LANG": os.environ.get("LANG") or "C.UTF-8",
    }


def own_account() -> pwd.struct_passwd:
    """The account of this process; one that nobody has named gets its number for a name."""
    uid = os.getuid()
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return pwd.struct_passwd((str(uid), "x", uid, os.getgid(), "", "/", "/bin/sh"))


def of_job(order: Order, base_env: dict[str, str]) -> dict[str, str]:
    """Defaults, then env_file, then env; the names that jobd gives cannot be overridden. UnstartableError."""
    from_file = read_env_file(order["env_file"]) if order["env_file"] else {}
    return {**base_env, "TZ": order["timezone"], **from_file, **order["env"], **order["own_env"]}


def read_env_file(path: str) -> dict[str, str]:
    """NAME=VALUE lines in UTF-8. Skipped are empty lines, lines that begin with #, and a leading `export`.

    A value goes to the end of the line, without the blanks around it; one pair of quotes around all
    of it, single or double, is taken off. Nothing is expanded, nothing is escaped.
    UnstartableError says which line is wrong and quotes no value.
    """
    if os.geteuid() == 0 and (problem := weakness(path)):
        raise UnstartableError(f"env_file {path} is not safe to use as root: {problem}, or set `user`")
    try:
        content = _read_file(path)
    except OSError as error:
        raise UnstartableError(
            f"cannot read env_file {path}: {error.strerror}: mend the path or its permissions"
        ) from None
    if len(content) > MAX_ENV_FILE_BYTES:
        raise UnstartableError(f"env_file {path} is over {MAX_ENV_FILE_BYTES} bytes: it holds NAME=VALUE lines only")
    try:
        lines = content.decode().split("\n")
    except UnicodeDecodeError:
        raise UnstartableError(f"env_file {path} is not UTF-8 text: save it as UTF-8") from None
    found = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.removeprefix("export ").partition("=")
        name = name.strip()
        if not equals or not name.isidentifier() or not name.isascii() or "\0" in value:
            raise UnstartableError(f"env_file {path}, line {number}: not NAME=VALUE: mend it, or begin it with #")
        found[name] = _unquoted(value.strip())
    return found


def _read_file(path: str) -> bytes:
    """At most one byte more than is allowed; never waits for the other end of a pipe."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a file")
        return file.read(MAX_ENV_FILE_BYTES + 1)


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return value
