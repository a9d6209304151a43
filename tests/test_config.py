"""The configuration room: what jobs.toml means, and what is told about wrong ones."""

from __future__ import annotations

import grp
import os
import pwd
import signal
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from supervisor import __version__
from supervisor.config import Access, Checked, Config, ConfigError, Group, Problem, check, load
from supervisor.config.lines import key_lines
from supervisor.config.problems import MAX_PROBLEMS
from supervisor.config.times import system_timezone
from supervisor.core.model import Dag, Finish, Job, Limits, Need, Outcome

MAIN = Path("jobs.toml")
Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Put files into an empty folder and go there, so that messages show short names."""
    monkeypatch.chdir(tmp_path)

    def put(main: str, **included: str) -> None:
        Path("jobs.d").mkdir(exist_ok=True)
        MAIN.write_text(dedent(main))
        for name, text in included.items():
            Path(f"jobs.d/{name}.toml").write_text(dedent(text))

    return put


def only_job(config: Config) -> Job:
    (dag,) = config.definitions.dags.values()
    (job,) = dag.jobs
    return job


def told(problems: list[Problem]) -> list[str]:
    return [str(problem) for problem in problems]


def checked() -> Checked:
    return check(MAIN)


# ---- what a good configuration means ---------------------------------------------------------------


def test_defaults_of_a_job(write: Write, tmp_path: Path) -> None:
    write('[jobs.load]\ncommand = "./load.sh"')
    assert only_job(load(MAIN)) == Job(
        name="load",
        dag="main",
        command="./load.sh",
        dir=str(tmp_path),
        retry_delay_s=30.0,
        retry_backoff=2.0,
        retry_max_delay_s=600.0,
        stop_timeout_s=10.0,
        log_max_bytes=100_000_000,
    )


FULL = """
    [daemon]
    state_dir = "state"
    socket = "/run/jobd.sock"
    socket_mode = "0660"
    timezone = "Europe/Berlin"
    max_running = 7

    [pools]
    warehouse = 4

    [dags.nightly]
    description = "the night"
    timezone = "America/New_York"
    autostart = true
    max_running = 3

    [jobs.load]
    dag = "nightly"
    description = "loads"
    tags = ["etl", "night"]
    command = ["./load.sh", "--full"]
    dir = "work"
    env = { A = "1" }
    env_file = "load.env"
    user = "root"
    umask = "022"
    needs = ["extract", ["eu", "us:done"], "probe:failed"]
    timeout = "1h30m"
    retries = 2
    retry_delay = "1m"
    retry_backoff = 1.5
    retry_max_delay = 3600
    retry_codes = [75]
    retry_lost = true
    success_codes = [0, 3]
    skip_codes = [4]
    finish = "report"
    stop_signal = "SIGINT"
    stop_timeout = 2.5
    pool = "warehouse"
    slots = 2
    priority = -5
    limits = { memory = "2GB", cpu_time = "1h", open_files = 1024, processes = 200, nice = 10 }
    log_max = "1GiB"

    [jobs]
    extract = { dag = "nightly", command = "e" }
    eu = { dag = "nightly", command = "e" }
    us = { dag = "nightly", command = "e" }
    probe = { dag = "nightly", command = "e" }
"""


def test_every_key_that_is_built(write: Write, tmp_path: Path) -> None:
    write(FULL)
    assert checked().warnings == []
    config = load(MAIN)
    assert config.daemon.state_dir == tmp_path / "state"
    assert config.daemon.socket == Path("/run/jobd.sock")
    assert config.daemon.socket_mode == 0o660
    assert config.daemon.timezone == "Europe/Berlin"
    assert config.definitions.max_running == 7
    assert config.definitions.pools == {"warehouse": 4}
    dag = config.definitions.dags["nightly"]
    assert (dag.description, dag.timezone, dag.autostart, dag.max_running) == ("the night", "America/New_York", True, 3)
    assert dag.jobs[-1] == Job(
        name="load",
        dag="nightly",
        description="loads",
        tags=("etl", "night"),
        command=("./load.sh", "--full"),
        dir=str(tmp_path / "work"),
        env={"A": "1"},
        env_file=str(tmp_path / "load.env"),
        user="root",
        umask=0o022,
        needs=(
            (Need("extract"),),
            (Need("eu"), Need("us", Outcome.DONE)),
            (Need("probe", Outcome.FAILED),),
        ),
        timeout_s=5400.0,
        retries=2,
        retry_delay_s=60.0,
        retry_backoff=1.5,
        retry_max_delay_s=3600.0,
        retry_codes=(75,),
        retry_lost=True,
        success_codes=(0, 3),
        skip_codes=(4,),
        finish=Finish.REPORT,
        stop_signal=signal.SIGINT,
        stop_timeout_s=2.5,
        pool="warehouse",
        slots=2,
        priority=-5,
        limits=Limits(memory_bytes=2_000_000_000, cpu_time_s=3600.0, open_files=1024, processes=200, nice=10),
        log_max_bytes=2**30,
    )


def test_the_groups_of_roles_are_looked_up_when_the_file_is_read(write: Write) -> None:
    write("")
    assert load(MAIN).access is None
    write("[access]")
    assert load(MAIN).access == Access()
    some, other = grp.getgrall()[:2]
    write(f"[access]\nview = ['{some.gr_name}', '{other.gr_name}']\nadmin = ['{other.gr_name}']")
    groups = Group(some.gr_name, some.gr_gid), Group(other.gr_name, other.gr_gid)
    assert load(MAIN).access == Access(view=groups, admin=groups[1:])


def test_jobs_stand_in_dependency_order(write: Write) -> None:
    write(
        """
        [jobs]
        c = { command = "c", needs = ["b"] }
        b = { command = "b", needs = [["a", "z:failed"]] }
        z = { command = "z" }
        a = { command = "a" }
        """
    )
    assert [job.name for job in load(MAIN).definitions.dags["main"].jobs] == ["z", "a", "b", "c"]


def test_an_empty_file_defines_nothing(write: Write, tmp_path: Path) -> None:
    write("")
    config = load(MAIN)
    assert config.definitions.dags == {}
    assert config.file == tmp_path / "jobs.toml"
    assert config.sources == (tmp_path / "jobs.toml",)
    assert config.daemon.state_dir is None


def test_a_dag_inherits_the_daemon_timezone(write: Write) -> None:
    write(
        """
        daemon.timezone = "Asia/Tokyo"
        dags.own = { timezone = "UTC" }
        jobs.a = { command = "a" }
        jobs.b = { command = "b", dag = "own" }
        """
    )
    assert {name: dag.timezone for name, dag in load(MAIN).definitions.dags.items()} == {
        "main": "Asia/Tokyo",
        "own": "UTC",
    }


def test_main_may_have_a_table(write: Write) -> None:
    write('[dags.main]\ndescription = "all"\n[jobs.a]\ncommand = "a"')
    assert load(MAIN).definitions.dags["main"].description == "all"


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ('"90s"', 90),
        ('"15m"', 900),
        ('"1h30m"', 5400),
        ('"2d"', 172_800),
        ('"1d1h1m1s"', 90_061),
        ("0.5", 0.5),
        ("7", 7),
    ],
)
def test_durations(write: Write, written: str, seconds: float) -> None:
    write(f'[jobs.a]\ncommand = "a"\ntimeout = {written}')
    assert only_job(load(MAIN)).timeout_s == seconds


def test_timeout_zero_lifts_the_default(write: Write) -> None:
    write('[defaults]\ntimeout = "4h"\n[jobs.a]\ncommand = "a"\ntimeout = 0')
    assert only_job(load(MAIN)).timeout_s is None


@pytest.mark.parametrize(
    ("written", "count"),
    [
        ("0", 0),
        ("5", 5),
        ('"7B"', 7),
        ('"1kB"', 10**3),
        ('"1.5KB"', 1500),
        ('"10MB"', 10**7),
        ('"1GB"', 10**9),
        ('"2 TB"', 2 * 10**12),
        ('"1KiB"', 2**10),
        ('"1MiB"', 2**20),
        ('"1GiB"', 2**30),
        ('"1TiB"', 2**40),
    ],
)
def test_sizes(write: Write, written: str, count: int) -> None:
    write(f'[jobs.a]\ncommand = "a"\nlog_max = {written}')
    assert only_job(load(MAIN)).log_max_bytes == count


def test_a_long_retry_delay_is_not_cut_by_the_built_in_maximum(write: Write) -> None:
    write('[jobs.a]\ncommand = "a"\nretries = 1\nretry_delay = "1h"')
    assert only_job(load(MAIN)).retry_max_delay_s == 3600.0


def test_defaults_lie_beneath_every_job(write: Write, tmp_path: Path) -> None:
    write(
        """
        [defaults]
        command = "default"
        dir = "shared"
        env = { A = "1", B = "1" }
        limits = { nice = 5 }
        retries = 3
        [jobs.a]
        env = { B = "2" }
        limits = { open_files = 64 }
        retries = 0
        """,
        more="jobs.b = { }",
    )
    b, a = sorted(load(MAIN).definitions.dags["main"].jobs, key=lambda job: job.retries, reverse=True)
    assert (a.command, a.retries, a.env, a.limits) == (
        "default",
        0,
        {"A": "1", "B": "2"},
        Limits(nice=5, open_files=64),
    )
    assert (b.command, b.retries, b.env, b.limits) == ("default", 3, {"A": "1", "B": "1"}, Limits(nice=5))
    assert a.dir == b.dir == str(tmp_path / "shared")


def test_a_config_is_frozen(write: Write) -> None:
    write("")
    with pytest.raises(AttributeError):
        load(MAIN).file = Path("other")  # type: ignore[misc]


# ---- wrong values: the exact words -----------------------------------------------------------------

NOT_BUILT = f"not built yet in jobd {__version__}; take it out"
DURATION_FORMS = '"90s", "15m", "1h30m", "2d" or a number of seconds'
SIGNALS = "TERM, INT, HUP, QUIT, KILL, USR1, USR2, ALRM, ABRT, WINCH"
OUTCOMES = "success, failed, done"
KINDS = (
    "failed, lost, missed, late_start, late_finish, too_long, too_short, too_much_data, too_little_data, no_data,"
    " recovered, success, retrying, run_success, run_failed"
)
OCTAL = 'expected permission bits as octal text from "000" to "777"'
ZONE = 'expected a time zone of this machine such as "Europe/Berlin"'
NAME_RULE = 'a name has letters, digits, ".", "_" and "-", at most 64, and begins with a letter or digit'

#: A line of [jobs.load], and what is told about it.
WRONG_KEYS = [
    ("retires = 2", 'retires: unknown key; did you mean "retries"?'),
    ('retries = "2"', 'retries: expected a whole number from 0 to 1000, found "2"'),
    ("retries = true", "retries: expected a whole number from 0 to 1000, found true"),
    ("retries = 2.0", "retries: expected a whole number from 0 to 1000, found 2.0"),
    ("retries = -1", "retries: expected a whole number from 0 to 1000, found -1"),
    ("retries = 1001", "retries: expected a whole number from 0 to 1000, found 1001"),
    (f"retries = {10**40}", "retries: expected a whole number from 0 to 1000, found a number"),
    ("retries = [2]", "retries: expected a whole number from 0 to 1000, found a list"),
    ("retry_backoff = nan", "retry_backoff: expected a number from 1 to 100, found nan"),
    ("retry_backoff = inf", "retry_backoff: expected a number from 1 to 100, found inf"),
    ("retry_backoff = 0.5", "retry_backoff: expected a number from 1 to 100, found 0.5"),
    ('enabled = "yes"', 'enabled: expected true or false, found "yes"'),
    ("enabled = 1", "enabled: expected true or false, found 1"),
    ('timeout = "soon"', f'timeout: expected a duration ({DURATION_FORMS}), found "soon"'),
    ('timeout = ""', f'timeout: expected a duration ({DURATION_FORMS}), found ""'),
    ('timeout = "90"', f'timeout: expected a duration ({DURATION_FORMS}), found "90"'),
    ('timeout = "5m1h"', f'timeout: expected a duration ({DURATION_FORMS}), found "5m1h"'),
    ('timeout = "٣s"', f'timeout: expected a duration ({DURATION_FORMS}), found "٣s"'),
    ("timeout = false", f"timeout: expected a duration ({DURATION_FORMS}), found false"),
    ("timeout = 10:30:00", f"timeout: expected a duration ({DURATION_FORMS}), found a time"),
    ("timeout = -1", "timeout: expected a duration from 0 to 3650d, found -1"),
    ("timeout = nan", "timeout: expected a duration from 0 to 3650d, found nan"),
    ("timeout = inf", "timeout: expected a duration from 0 to 3650d, found inf"),
    ('timeout = "3651d"', 'timeout: expected a duration from 0 to 3650d, found "3651d"'),
    ('log_max = "10 megs"', 'log_max: expected a size ("10MB", "1GiB" or a number of bytes), found "10 megs"'),
    ('log_max = "10"', 'log_max: expected a size ("10MB", "1GiB" or a number of bytes), found "10"'),
    ("log_max = 1.5", 'log_max: expected a size ("10MB", "1GiB" or a number of bytes), found 1.5'),
    ("log_max = -1", "log_max: expected a size from 0 bytes to 1024TiB, found -1"),
    ('command = ""', "command: expected a command, found empty text"),
    ('command = "  "', "command: expected a command, found empty text"),
    ("command = []", "command: expected text for /bin/sh or a list of texts (argv), found an empty list"),
    ('command = [""]', "command: expected a command, found empty text"),
    ('command = ["a", 1]', "command: expected text for /bin/sh or a list of texts (argv), found 1 in the list"),
    ("command = 5", "command: expected text for /bin/sh or a list of texts (argv), found 5"),
    ('command = "a\\u0000b"', "command: expected a command without NUL characters; take the \\u0000 out"),
    (f'command = "{"x" * 131_072}"', "command: expected at most 131071 bytes, found 131072; use a script"),
    (f"command = {['x'] * 1001}", "command: expected at most 1000 arguments, found 1001"),
    ('dir = "a\\u0000"', 'dir: expected a path, found "a\\u0000"'),
    ('dir = ""', 'dir: expected a path, found ""'),
    (f'dir = "{"d" * 4097}"', "dir: expected a path of at most 4096 bytes, found 4097"),
    ("env_file = 1", "env_file: expected a path, found 1"),
    ('env = "A=1"', "env: expected a table of texts, found text"),
    ("env = { PIN = 4711 }", 'env: "PIN": expected text, found a number; put it in quotes'),
    ('env = { A-B = "x" }', 'env: "A-B" cannot be the name of a variable; use letters, digits and _'),
    ('env = { JOBD_RUN = "x" }', "env: JOBD_RUN: names that begin with JOBD_ are set by jobd; choose another"),
    ('env = { A = "\\u0000" }', 'env: "A": expected text without NUL characters; take the \\u0000 out'),
    (f'env = {{ A = "{"x" * 65_536}" }}', "env: expected at most 65536 bytes in all, found 65539; use env_file"),
    ('user = "a:b"', 'user: expected the name of an account, found "a:b"'),
    ('umask = "088"', f'umask: {OCTAL}, found "088"'),
    ("umask = 18", f"umask: {OCTAL}, found 18"),
    ("tags = 'etl'", 'tags: expected a list of tags, found "etl"'),
    ("tags = ['']", 'tags: expected text that is not empty, found ""'),
    (f"tags = {['t'] * 51}", "tags: expected at most 50 elements, found 51"),
    ('description = "\\u001b[2J"', 'description: expected text without control characters, found "\\u001b[2J"'),
    (f'description = "{"x" * 1001}"', "description: expected at most 1000 characters, found 1001"),
    ('finish = "tee"', 'finish: expected one of tree, main, report, found "tee"; did you mean "tree"?'),
    ('stop_signal = "TREM"', f'stop_signal: expected one of {SIGNALS}, found "TREM"; did you mean "TERM"?'),
    ("stop_signal = 15", f"stop_signal: expected one of {SIGNALS}, found 15"),
    ("success_codes = [256]", "success_codes: expected a whole number from 0 to 255, found 256"),
    ("success_codes = []", "success_codes: expected a list of exit codes that is not empty, found an empty list"),
    ("skip_codes = 4", "skip_codes: expected a list of exit codes, found 4"),
    ("skip_codes = [0, 4]", "skip_codes: 0 cannot mean both success and skip; take it out of one"),
    ("slots = 2", "slots: slots are taken from a pool; name one with pool = …"),
    ("slots = 0", "slots: expected a whole number from 1 to 100000, found 0"),
    ('pool = "warehose"', 'pool: no pool "warehose"; did you mean "warehouse"?'),
    ('pool = "x"', 'pool: no pool "x"; define it under [pools] as x = SLOTS'),
    ('dag = "nigthly"', 'dag: no dag "nigthly"; did you mean "nightly"?'),
    ('dag = "other"', 'dag: no dag "other"; define it as [dags.other]'),
    ('dag = "a b"', f'dag: expected a name ({NAME_RULE}), found "a b"'),
    ('needs = "extract"', 'needs: expected a list of job names, found "extract"'),
    ("needs = [1]", 'needs: expected a job such as "extract" or "extract:failed", found 1'),
    ("needs = ['']", 'needs: expected a job such as "extract" or "extract:failed", found ""'),
    ("needs = [[]]", "needs: an inner list means any of its jobs, but this one is empty; name a job or take it out"),
    ("needs = ['load']", "needs: a job cannot need itself; take it out"),
    ("needs = ['extrct']", 'needs: no job "extrct"; did you mean "extract"?'),
    ("needs = ['zzz']", 'needs: no job "zzz"; define it as [jobs.zzz]'),
    ("needs = ['nightly']", 'needs: "nightly" is a dag; a job needs jobs of its own dag'),
    ("needs = ['late']", 'needs: "late" is in dag "nightly", "load" in "main"; a job needs jobs of its own dag'),
    (
        "needs = ['extract:faild']",
        f'needs: "extract:faild": expected one of {OUTCOMES} after the colon; did you mean "failed"?',
    ),
    ("needs = ['extract:']", f'needs: "extract:": expected one of {OUTCOMES} after the colon'),
    ("needs = [['extract', 'extract:failed']]", 'needs: "extract" stands twice in one inner list; take one out'),
    ("needs = ['extract:done', 'extract:done']", 'needs: "extract:done" stands there twice; take one out'),
    ("limits = 5", "limits: expected a table, found a number"),
    ("limits = { memroy = 1 }", 'limits.memroy: unknown key; did you mean "memory"?'),
    ("limits = { memory = 1 }", "limits.memory: expected a size from 1000000 bytes to 1024TiB, found 1"),
    ("limits = { cpu_time = 0.5 }", "limits.cpu_time: expected a duration of at least 1s, found 0.5"),
    ("limits = { nice = 20 }", "limits.nice: expected a whole number from -20 to 19, found 20"),
    ('at = "25:00"', 'at: expected a wall-clock time "HH:MM" from "00:00" to "23:59", found "25:00"'),
    ('at = "03:30"', f"at: {NOT_BUILT}"),
    ('notify = ["oncall"]', 'notify: no route "oncall"; define it as [notify.oncall]'),
    ("expect = { runtime = { min = 2, max = 1 } }", "expect.runtime: min (2) is more than max (1)"),
    ("expect = { data_within = '10m' }", f"expect: {NOT_BUILT}"),
    ("retries = 1\nretry_delay = 20\nretry_max_delay = 10", "retry_delay: 20s is more than retry_max_delay (10s)"),
]

AROUND = """\
pools = { warehouse = 4 }
dags.nightly = { }
jobs.extract = { command = "e" }
jobs.late = { command = "l", dag = "nightly" }
[jobs.load]
"""


@pytest.mark.parametrize(("line", "expected"), WRONG_KEYS, ids=[expected[:60] for _, expected in WRONG_KEYS])
def test_wrong_key_of_a_job(write: Write, line: str, expected: str) -> None:
    write(AROUND + ("" if line.startswith("command") else 'command = "c"\n') + line)
    errors = [f"{problem.where}: {problem.message}" for problem in checked().errors]
    if expected.endswith(NOT_BUILT):
        assert errors == [f"jobs.load.{expected}"]
    else:
        assert [error for error in errors if not error.endswith(NOT_BUILT)] == [f"jobs.load.{expected}"]


#: A whole file, and the one thing that is told about it.
WRONG_FILES = [
    ("[job.load]", 'jobs.toml:1: job: unknown key; did you mean "jobs"?'),
    ("jobs = 5", "jobs.toml:1: jobs: expected a table of names, found a number"),
    ("[[jobs]]", "jobs.toml:1: jobs: expected a table of names, found a list"),
    ("jobs.a = 5", "jobs.toml:1: jobs.a: expected a table, found a number"),
    ("[jobs.a]", 'jobs.toml:1: jobs.a: command is missing; say what to run, as text or as ["program", "argument"]'),
    ("[jobs.'a b']\ncommand = 'c'", f'jobs.toml:1: jobs."a b": not a name: {NAME_RULE}'),
    ("[jobs.'-a']\ncommand = 'c'", f"jobs.toml:1: jobs.-a: not a name: {NAME_RULE}"),
    (
        "[jobs.a]\ncommand = 'c'\n[jobs.a.b]\ncommand = 'c'",
        'jobs.toml:3: jobs.a.b: unknown key; a name with a dot is put in quotes: [jobs."a.b"]',
    ),
    (
        '[jobs.a]\ncommand = "c"\n[jobs.a."\\u001b"]',
        'jobs.toml:3: jobs.a."\\u001b": unknown key; a name with a dot is put in quotes: [jobs."a.\\u001b"]',
    ),
    (
        "[jobs.main]\ncommand = 'c'",
        'jobs.toml:1: jobs.main: "main" is the dag of jobs that name none; jobs and dags need different names',
    ),
    (
        "[dags.x]\n[jobs.x]\ndag = 'x'\ncommand = 'c'",
        "jobs.toml:2: jobs.x: a dag bears this name (jobs.toml:1); jobs and dags need different names",
    ),
    (
        "pools.p = 1\n[jobs.a]\ncommand = 'c'\npool = 'p'\nslots = 2",
        'jobs.toml:5: jobs.a.slots: pool "p" has 1 (jobs.toml:1), so 2 slots can never be had',
    ),
    (
        "pools.p = 1\ndefaults.slots = 2\n[jobs.a]\ncommand = 'c'\npool = 'p'",
        'jobs.toml:2: defaults.slots: pool "p" has 1 (jobs.toml:1), so 2 slots can never be had',
    ),
    ("pools.p = 0", "jobs.toml:1: pools.p: expected a whole number from 1 to 100000, found 0"),
    (
        "defaults.dag = 'x'\njobs.a.command = 'a'\njobs.b.command = 'b'",
        'jobs.toml:1: defaults.dag: no dag "x"; define it as [dags.x]',
    ),
    (
        "[jobs]\na = { command = 'a', needs = ['b'] }\nb = { command = 'b', needs = ['a'] }",
        "jobs.toml:2: jobs.a.needs: needs run in a circle: a → b → a; take one out",
    ),
    (
        "[jobs]\nx = { command = 'x', needs = ['c'] }\na = { command = 'a', needs = ['b'] }\n"
        "b = { command = 'b', needs = [['c', 'd']] }\nd = { command = 'd' }\nc = { command = 'c', needs = ['a:done'] }",
        "jobs.toml:3: jobs.a.needs: needs run in a circle: a → b → c → a; take one out",
    ),
    (
        "[daemon]\ntimezone = 'Europe/Berln'",
        f'jobs.toml:2: daemon.timezone: {ZONE}, found "Europe/Berln"; did you mean "Europe/Berlin"?',
    ),
    ("[daemon]\ntimezone = '../../etc/passwd'", f'jobs.toml:2: daemon.timezone: {ZONE}, found "../../etc/passwd"'),
    ("[daemon]\nsocket_mode = 0o660", f"jobs.toml:2: daemon.socket_mode: {OCTAL}, found 432"),
    (
        f"daemon.socket = '/{'s' * 107}'",
        "jobs.toml:1: daemon.socket: a socket's path has at most 107 bytes, found 108; choose a shorter one",
    ),
    ("[daemon]\nkeep = { logs = '30d' }", f"jobs.toml:2: daemon.keep: {NOT_BUILT}"),
    ("[access]\nview = 'root'", 'jobs.toml:2: access.view: expected a list of groups, found "root"'),
    ("[access]\nview = ['root', 5]", "jobs.toml:2: access.view: expected the name of a group, found 5"),
    (
        "[access]\noperate = ['root', 'no-such-group']",
        'jobs.toml:2: access.operate: this machine has no group "no-such-group"; make it with groupadd, or take it out',
    ),
    (
        "[calendars.workdays]\nweekdays = 'mon-fri'\nalso = ['2026-12-27']",
        f"jobs.toml:1: calendars.workdays: {NOT_BUILT}",
    ),
    ("[notify.oncall]\nurls = ['mailto://x']", f"jobs.toml:1: notify.oncall: {NOT_BUILT}"),
    ("[joblog]\ntable = 'job_log'", f"jobs.toml:1: joblog: {NOT_BUILT}"),
    ("include = 'x'", 'jobs.toml:1: include: expected a list of file patterns, found "x"'),
    ("x = [", "jobs.toml:1: not valid TOML: invalid value (at end of document)"),
    ("\n\nx = = 1", "jobs.toml:3: not valid TOML: invalid value"),
    ("[a]\n[a]", "jobs.toml:2: not valid TOML: cannot declare ('a',) twice"),
    ("x = 1\nx = 2\n", "jobs.toml:2: not valid TOML: cannot overwrite a value"),
]


@pytest.mark.parametrize(("text", "expected"), WRONG_FILES, ids=[expected[:60] for _, expected in WRONG_FILES])
def test_wrong_file(write: Write, text: str, expected: str) -> None:
    write(text)
    assert told(checked().errors) == [expected]


@pytest.mark.parametrize("text", [f"x = {'[' * 5_000}{']' * 5_000}", f"x = {'1' * 5_000}"])
def test_toml_without_bounds(write: Write, text: str) -> None:
    write(text)
    (error,) = told(checked().errors)
    assert error.startswith("jobs.toml: not usable TOML: ")


#: A line of [dags.nightly] or of another table, checked although it is not built, and what is told first.
UNBUILT_WRONG = [
    ("dags.n.schedule", "'61 2 * * *'", 'expected 5 fields of cron or "every 15m", found "61 2 * * *": bad minute'),
    ("dags.n.schedule", "'* * * * * *'", 'expected 5 fields of cron or "every 15m", found "* * * * * *"'),
    ("dags.n.schedule", "['0 2 * * *', 5]", 'expected 5 fields of cron or "every 15m", found 5'),
    ("dags.n.schedule", "'every 0s'", 'expected more than 0 seconds between two runs, found "every 0s"'),
    ("dags.n.schedule", "'every day'", f'expected a duration ({DURATION_FORMS}), found "day"'),
    ("dags.n.overlap", "'skp'", 'expected one of skip, queue, parallel, found "skp"; did you mean "skip"?'),
    ("dags.n.catchup", "true", "expected one of none, last, all, found true"),
    ("dags.n.start_by", "'2:30'", 'expected a wall-clock time "HH:MM" from "00:00" to "23:59", found "2:30"'),
    ("dags.n.finish_by", "'later'", f'expected a duration ({DURATION_FORMS}), found "later"'),
    ("dags.n.calendar", "'workdays'", 'no calendar "workdays"; define it as [calendars.workdays]'),
    ("dags.n.notify", "['oncall']", 'no route "oncall"; define it as [notify.oncall]'),
    ("calendars.c.weekdays", "'mon-fry'", 'expected days such as "mon-fri" or "mon,wed,sat", found "mon-fry"'),
    ("calendars.c.except", "['2026-02-30']", 'expected a date "YYYY-MM-DD" as text, found "2026-02-30"'),
    ("notify.o.on", "['faild']", f'expected one of {KINDS}, found "faild"; did you mean "failed"?'),
    ("notify.o.urls", "[5]", "expected text, found a number"),
    ("joblog.poll", "0", "expected a duration of at least 1s, found 0"),
]


@pytest.mark.parametrize(("key", "value", "expected"), UNBUILT_WRONG)
def test_what_is_not_built_is_typed_all_the_same(write: Write, key: str, value: str, expected: str) -> None:
    write(f"{key} = {value}")
    errors = told(checked().errors)
    assert f"jobs.toml:1: {key}: {expected}" in errors
    assert any(error.endswith(NOT_BUILT) for error in errors)


@pytest.mark.parametrize(
    "key",
    [
        "schedule = '0 2 * * 1-5'",
        "schedule = ['every 15m', '0 2 * * mon']",
        "overlap = 'queue'",
        "catchup = 'all'",
        "catchup_window = '12h'",
        "start_by = '02:30'",
        "finish_by = '4h'",
    ],
)
def test_dag_keys_that_are_not_built(write: Write, key: str) -> None:
    write(f"[dags.nightly]\n{key}")
    name = key.partition(" ")[0]
    assert told(checked().errors) == [f"jobs.toml:2: dags.nightly.{name}: {NOT_BUILT}"]


def test_secrets_stay_out_of_messages(write: Write) -> None:
    write(
        """
        jobs.a = { command = "a", env = { PIN = 4711 } }
        notify.x.urls = [4711, "mailto://4711\\u0007"]
        joblog.url = ["4711"]
        """
    )
    errors = told(checked().errors)
    assert len(errors) == 6
    assert not any("4711" in error for error in errors)


# ---- all of it at once -----------------------------------------------------------------------------


def test_every_error_at_once_in_the_order_of_files_and_lines(write: Write) -> None:
    write(
        """\
        [daemon]
        max_running = -1
        sokcet = "x"

        [jobs.a]
        command = ""
        needs = ["b", "nope", []]
        timeout = "x"
        [jobs.b]
        command = "b"
        needs = ["a"]
        """,
        more="""\
        [jobs.c]
        retires = 1
        [jobs.a]
        command = 5
        """,
    )
    with pytest.raises(ConfigError) as caught:
        load(MAIN)
    assert told(caught.value.errors) == [
        "jobs.toml:2: daemon.max_running: expected a whole number from 0 to 100000, found -1",
        'jobs.toml:3: daemon.sokcet: unknown key; did you mean "socket"?',
        "jobs.toml:6: jobs.a.command: expected a command, found empty text",
        "jobs.toml:7: jobs.a.needs: an inner list means any of its jobs, but this one is empty;"
        " name a job or take it out",
        'jobs.toml:7: jobs.a.needs: no job "nope"; define it as [jobs.nope]',
        "jobs.toml:7: jobs.a.needs: needs run in a circle: a → b → a; take one out",
        f'jobs.toml:8: jobs.a.timeout: expected a duration ({DURATION_FORMS}), found "x"',
        'jobs.d/more.toml:1: jobs.c: command is missing; say what to run, as text or as ["program", "argument"]',
        'jobs.d/more.toml:2: jobs.c.retires: unknown key; did you mean "retries"?',
        "jobs.d/more.toml:3: jobs.a: already defined at jobs.toml:5; a name may be defined once",
        "jobs.d/more.toml:4: jobs.a.command: expected text for /bin/sh or a list of texts (argv), found 5",
    ]
    assert str(caught.value).count("\n") == 10
    assert checked().config is None


def test_a_wrong_key_has_no_further_errors_in_its_train(write: Write) -> None:
    write(
        """
        pools.p = "x"
        [jobs.a]
        command = 5
        dag = 5
        needs = 5
        [jobs.b]
        command = "b"
        needs = ["a"]
        pool = "p"
        slots = 2
        retries = "x"
        retry_delay = "1m"
        env = 5
        """
    )
    result = checked()
    assert [problem.where for problem in result.errors] == [
        "pools.p", "jobs.a.command", "jobs.a.dag", "jobs.a.needs", "jobs.b.retries", "jobs.b.env",
    ]  # fmt: skip
    assert result.warnings == []


def test_several_circles_are_all_told(write: Write) -> None:
    pairs = "\n".join(
        f"a{n} = {{ command = 'a', needs = ['b{n}'] }}\nb{n} = {{ command = 'b', needs = ['a{n}'] }}" for n in range(3)
    )
    write(f"[jobs]\n{pairs}")
    assert [problem.where for problem in checked().errors] == ["jobs.a0.needs", "jobs.a1.needs", "jobs.a2.needs"]


def test_a_long_circle_is_shortened(write: Write) -> None:
    write("[jobs]\n" + "\n".join(f"j{n} = {{ command = 'j', needs = ['j{(n + 1) % 1000}'] }}" for n in range(1000)))
    (error,) = told(checked().errors)
    assert "j0 → j1 → j2" in error
    assert "… 981 more …" in error
    assert error.endswith("j999 → j0; take one out")


def test_too_many_problems_are_counted_and_not_told(write: Write) -> None:
    write("[jobs.a]\ncommand = 'a'\n" + "\n".join(f"x{n} = 1" for n in range(MAX_PROBLEMS + 5)))
    errors = checked().errors
    assert len(errors) == MAX_PROBLEMS + 1
    assert Problem("jobs.toml", 0, "", "there is more to correct; begin with what is told before this") in errors


# ---- warnings --------------------------------------------------------------------------------------


def test_warnings_do_not_keep_a_configuration_from_loading(write: Write) -> None:
    write(
        """\
        include = ["nothing.d/*.toml"]
        [dags.empty]
        [jobs.a]
        command = "a"
        needs = ["b"]
        retry_delay = "1m"
        retry_lost = true
        [jobs.b]
        command = "b"
        enabled = false
        user = "no-such-account"
        retry_codes = [0, 5]
        retries = 1
        """
    )
    result = checked()
    assert result.config is not None
    assert told(result.warnings) == [
        'jobs.toml:1: include: no file matches "nothing.d/*.toml"',
        'jobs.toml:2: dags.empty: no job is in this dag; give one dag = "empty"',
        'jobs.toml:5: jobs.a.needs: "b" is disabled (jobs.toml:10) and will be skipped',
        "jobs.toml:6: jobs.a.retry_delay: has no effect without retries; set retries, or take it out",
        'jobs.toml:11: jobs.b.user: this machine has no account "no-such-account"; the job cannot start',
        "jobs.toml:12: jobs.b.retry_codes: 0 is no failure, so it is never retried",
    ]


def test_no_warning_for_retry_delay_among_the_defaults(write: Write) -> None:
    write('[defaults]\nretry_delay = "1m"\n[jobs.a]\ncommand = "a"')
    assert checked().warnings == []


def test_an_account_of_this_machine_is_no_warning(write: Write) -> None:
    write(f'[jobs.a]\ncommand = "a"\nuser = "{pwd.getpwuid(os.getuid()).pw_name}"')
    assert checked().warnings == []


# ---- files -----------------------------------------------------------------------------------------


def test_included_files_are_read_sorted_and_paths_begin_at_their_folder(write: Write, tmp_path: Path) -> None:
    write(
        "[jobs.a]\ncommand = 'a'\ndir = '/abs'",
        z="[jobs.z]\ncommand = 'z'",
        b="""
        [jobs.b]
        command = "b"
        dir = "sub"
        env_file = "b.env"
        [pools]
        p = 1
        [dags.d]
        [jobs.c]
        command = "c"
        dag = "d"
        """,
    )
    Path("jobs.d/.hidden.toml").write_text("nonsense")
    Path("jobs.d/readme.txt").write_text("nonsense")
    config = load(MAIN)
    assert config.sources == tuple(tmp_path / name for name in ("jobs.toml", "jobs.d/b.toml", "jobs.d/z.toml"))
    jobs = {job.name: job for dag in config.definitions.dags.values() for job in dag.jobs}
    assert jobs["a"].dir == "/abs"
    assert jobs["b"].dir == str(tmp_path / "jobs.d/sub")
    assert jobs["b"].env_file == str(tmp_path / "jobs.d/b.env")
    assert jobs["z"].dir == str(tmp_path / "jobs.d")
    assert config.definitions.pools == {"p": 1}


def test_the_default_include_may_match_nothing(write: Write) -> None:
    write("")
    assert checked().warnings == []


def test_include_patterns(write: Write, tmp_path: Path) -> None:
    write(f"include = ['jobs.d/a*.toml', '{tmp_path}/jobs.d/*.toml', '**/x.toml', '*.toml']", ab="jobs.a.command = 'a'")
    Path("deep/er").mkdir(parents=True)
    Path("deep/er/x.toml").write_text("jobs.x.command = 'x'")
    assert load(MAIN).sources == tuple(tmp_path / name for name in ("jobs.toml", "jobs.d/ab.toml", "deep/er/x.toml"))


@pytest.mark.parametrize("table", ["daemon", "access", "defaults", "joblog"])
def test_only_the_main_file_may_have_them(write: Write, table: str) -> None:
    write("", a=f"[{table}]\n", b="include = ['more']")
    assert told(checked().errors) == [
        f"jobs.d/a.toml:1: {table}: only the main file (jobs.toml) may have this; move it there",
        "jobs.d/b.toml:1: include: only the main file (jobs.toml) may have this; move it there",
    ]


def test_a_name_defined_twice_names_both_places(write: Write) -> None:
    write(
        "[jobs.a]\ncommand = 'a'\n[pools]\np = 1\n[dags.d]",
        a="\n[dags.d]\n[jobs.a]\ncommand = 'other'\n[jobs.d]\ncommand = 'd'\n[pools]\np = 2",
    )
    assert told(checked().errors) == [
        "jobs.d/a.toml:2: dags.d: already defined at jobs.toml:5; a name may be defined once",
        "jobs.d/a.toml:3: jobs.a: already defined at jobs.toml:1; a name may be defined once",
        "jobs.d/a.toml:5: jobs.d: a dag bears this name (jobs.toml:5); jobs and dags need different names",
        "jobs.d/a.toml:8: pools.p: already defined at jobs.toml:4; a name may be defined once",
    ]


def test_a_broken_included_file_does_not_make_names_unknown(write: Write) -> None:
    write("[jobs.a]\ncommand = 'a'\nneeds = ['b']\npool = 'p'\ndag = 'd'\nretires = 1", broken="[jobs.b\n")
    assert told(checked().errors) == [
        'jobs.toml:6: jobs.a.retires: unknown key; did you mean "retries"?',
        "jobs.d/broken.toml:1: not valid TOML: expected ']' at the end of a table declaration",
    ]


def test_a_missing_file(write: Write) -> None:
    write("")
    assert told(check(Path("no.toml")).errors) == ["no.toml: cannot be read: No such file or directory"]


def test_a_folder_a_fifo_and_a_dangling_link(write: Write) -> None:
    write("")
    Path("jobs.d/a.toml").mkdir()
    os.mkfifo("jobs.d/b.toml")
    Path("jobs.d/c.toml").symlink_to("nowhere")
    assert told(checked().errors) == [
        "jobs.d/a.toml: cannot be read: Is a directory",
        "jobs.d/b.toml: cannot be read: not a regular file",
        "jobs.d/c.toml: cannot be read: No such file or directory",
    ]


def test_a_file_without_permission(write: Write) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads every file")
    write("")
    MAIN.chmod(0)
    assert told(checked().errors) == ["jobs.toml: cannot be read: Permission denied"]


def test_a_file_that_is_not_utf8(write: Write) -> None:
    write("")
    MAIN.write_bytes(b"# one\n# \xff\n")
    assert told(checked().errors) == ["jobs.toml:2: not UTF-8: byte 0xff; save the file as UTF-8"]


def test_a_file_that_is_too_large(write: Write) -> None:
    write("")
    with MAIN.open("wb") as file:
        file.truncate(16 * 2**20 + 1)
    assert told(checked().errors) == ["jobs.toml: expected at most 16 MiB; move jobs to included files"]


# ---- lines -----------------------------------------------------------------------------------------

ODD = (
    '''\
# a comment with [brackets] and "quotes"
top = """
[not.a.table]
key = "not a key" \\""" still text"""

"quoted \\u0041" . 'lit.eral' = 1   # dotted
[ a . "b" ]  # comment
x = [ # the list
  1, # one
  """two
  lines""",
  { in = 'line',
    more = [
      [3] ] },
]
y.z = 1979-05-27 07:32:00
[[list]]
k = '''
    + """'''
# not a comment
'''"""
    + """
[[list]]
[list.sub]
k = "}]#"
[a.later]
"""
)


def test_lines_in_odd_toml() -> None:
    assert key_lines(ODD) == {
        ("top",): 2,
        ("quoted A",): 6,
        ("quoted A", "lit.eral"): 6,
        ("a",): 7,
        ("a", "b"): 7,
        ("a", "b", "x"): 8,
        ("a", "b", "x", 0): 9,
        ("a", "b", "x", 1): 10,
        ("a", "b", "x", 2): 12,
        ("a", "b", "x", 2, "in"): 12,
        ("a", "b", "x", 2, "more"): 13,
        ("a", "b", "x", 2, "more", 0): 14,
        ("a", "b", "x", 2, "more", 0, 0): 14,
        ("a", "b", "y"): 16,
        ("a", "b", "y", "z"): 16,
        ("list",): 17,
        ("list", 0): 17,
        ("list", 0, "k"): 18,
        ("list", 1): 21,
        ("list", 1, "sub"): 22,
        ("list", 1, "sub", "k"): 23,
        ("a", "later"): 24,
    }


def test_the_line_of_each_need(write: Write) -> None:
    write('[jobs.a]\ncommand = "a"\nneeds = [\n  "x",\n  ["y",\n   "z"],\n]')
    assert [(problem.line, problem.message[:10]) for problem in checked().errors] == [
        (4, 'no job "x"'),
        (5, 'no job "y"'),
        (5, 'no job "z"'),
    ]


def test_windows_line_ends(write: Write) -> None:
    write("")
    MAIN.write_bytes(b'[jobs.a]\r\ncommand = """\r\na"""\r\nretires = 1\r\n')
    assert [(problem.line, problem.where) for problem in checked().errors] == [(4, "jobs.a.retires")]


# ---- time zone of the machine ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "environ", "expected"),
    [
        ("/usr/share/zoneinfo/Europe/Berlin", {}, "Europe/Berlin"),
        ("../usr/share/zoneinfo/Etc/UTC", {"TZ": "Asia/Tokyo"}, "Etc/UTC"),
        ("/somewhere/else", {"TZ": ":Asia/Tokyo"}, "Asia/Tokyo"),
        (None, {"TZ": "Asia/Tokyo"}, "Asia/Tokyo"),
        (None, {"TZ": "EST5EDT4,M3.2.0"}, "UTC"),
        (None, {}, "UTC"),
    ],
)
def test_the_zone_of_the_machine(tmp_path: Path, link: str | None, environ: dict[str, str], expected: str) -> None:
    localtime = tmp_path / "localtime"
    if link:
        localtime.symlink_to(link)
    assert system_timezone(localtime, environ) == expected


def test_dags_without_a_zone_have_that_of_the_machine(write: Write) -> None:
    write("jobs.a.command = 'a'")
    assert load(MAIN).definitions.dags["main"] == Dag(
        name="main", timezone=system_timezone(), jobs=(only_job(load(MAIN)),)
    )
