"""Properties of the configuration room: what is generated is what is read, and nothing but ConfigError comes out."""

from __future__ import annotations

import itertools
import json
import re
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.config import Config, ConfigError, Problem, check, load
from supervisor.config.lines import KeyPath, key_lines
from supervisor.core.model import Finish, Job, Limits, Need, Outcome

SLOW = settings(deadline=None, max_examples=200)


def toml(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(content)}" for key, content in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def paths_of(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Every key and list element of what the TOML reader gave."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, content in inner:
        yield (*path, key)
        yield from paths_of(content, (*path, key))


# ---- lines -----------------------------------------------------------------------------------------

BLANK = st.sampled_from(["", " ", "\t", "  "])
SPACE_OR_LINE = st.sampled_from(["", " ", "\n", " # [x] = '\n", "\n\n\t"])
TEXTS = st.text(st.sampled_from("ab \"'\\#[]{}=,.\n\tä🙂"), max_size=6)


class Writer:
    """Writes random TOML in random forms. Every key ends with a number of its own, so that it can be found again."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.numbers = itertools.count()

    def pick(self, *options: str) -> str:
        return self.draw(st.sampled_from(options))

    def key(self) -> str:
        bare = f"key-{next(self.numbers)}_"
        odd = self.draw(TEXTS.filter(lambda text: "\n" not in text and "'" not in text))
        return self.pick(bare, f'"{bare}"', f"'{odd}{bare}'", toml(odd + bare), f'"\\u0041{bare}"')

    def keys(self) -> str:
        parts = [self.key() for _ in range(self.draw(st.integers(1, 3)))]
        return f"{self.draw(BLANK)}.{self.draw(BLANK)}".join(parts)

    def text(self) -> str:
        text = self.draw(TEXTS)
        plain = text.replace("'", "").replace("\n", "")
        multi = toml(text)[1:-1].replace("\\n", "\n")
        quotes = self.pick("", '"', '""')
        return self.pick(toml(text), f"'{plain}'", f"'''\n{text.replace(chr(39), '')}'''", f'"""\n{multi}{quotes}"""')

    def value(self, depth: int) -> str:
        kind = self.pick("text", "text", "plain", "plain", *(["list", "table"] if depth else []))
        if kind == "text":
            return self.text()
        if kind == "plain":
            return self.pick(
                "1", "-1.5e3", "true", "inf", "0xFF", "1979-05-27 07:32:00", "07:32:00", "1979-05-27T00:00:00Z"
            )
        count = self.draw(st.integers(0, 3))
        if kind == "list":
            items = [self.draw(SPACE_OR_LINE) + self.value(depth - 1) + self.draw(SPACE_OR_LINE) for _ in range(count)]
            trailing = self.pick("", ",") if items else self.draw(SPACE_OR_LINE)
            return f"[{','.join(items)}{trailing}]"
        return "{" + ",".join(self.pair(depth - 1) for _ in range(count)) + "}"

    def pair(self, depth: int) -> str:
        blanks = [self.draw(BLANK) for _ in range(4)]
        return f"{blanks[0]}{self.keys()}{blanks[1]}={blanks[2]}{self.value(depth)}{blanks[3]}"

    def document(self) -> str:
        lines = []
        arrays: list[str] = []
        for _ in range(self.draw(st.integers(0, 8))):
            kind = self.pick("pair", "pair", "table", "array", "again", "sub", "blank")
            if kind == "pair":
                lines.append(self.pair(3))
            elif kind == "table":
                lines.append(f"{self.draw(BLANK)}[{self.draw(BLANK)}{self.keys()}{self.draw(BLANK)}]{self.draw(BLANK)}")
            elif kind == "array":
                arrays.append(self.keys())
                lines.append(f"[[{arrays[-1]}]]")
            elif kind == "again" and arrays:
                lines.append(f"[[ {self.pick(*arrays)} ]] # again")
            elif kind == "sub" and arrays:
                lines.append(f"[{self.pick(*arrays)}.{self.keys()}]")
            else:
                lines.append(self.pick("", "# [comment] = {", "\t"))
        return self.pick("\n", "\n\n", "\r\n").join(lines) + self.pick("", "\n")


@st.composite
def toml_documents(draw: st.DrawFn) -> str:
    return Writer(draw).document()


def is_toml(text: str) -> bool:
    try:
        tomli.loads(text)
    except tomli.TOMLDecodeError:
        return False
    return True


@SLOW
@given(toml_documents().filter(is_toml))
def test_the_scanner_finds_what_the_reader_finds_on_the_right_line(text: str) -> None:
    lines = key_lines(text)
    assert set(lines) == set(paths_of(tomli.loads(text)))
    for path, line in lines.items():
        if isinstance(path[-1], str):
            number = re.findall(r"key-[0-9]+_", path[-1])[-1]
            assert line == text[: text.index(number)].count("\n") + 1


# ---- good configurations ---------------------------------------------------------------------------

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
SAFE_TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=20)
COMMANDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20).filter(
    str.strip
)
SIGNALS = ["TERM", "SIGINT", "KILL", "USR1"]


@st.composite
def durations(draw: st.DrawFn) -> tuple[Any, float]:
    counts = draw(st.tuples(*[st.integers(0, 99)] * 4))
    seconds = sum(count * unit for count, unit in zip(counts, (86_400, 3_600, 60, 1), strict=True))
    text = "".join(f"{count}{unit}" for count, unit in zip(counts, "dhms", strict=True) if count) or "0s"
    written: Any = draw(st.sampled_from([text, seconds, float(seconds)]))
    return written, float(seconds)


@st.composite
def sizes(draw: st.DrawFn) -> tuple[Any, int]:
    count = draw(st.integers(1, 1000))
    unit, factor = draw(st.sampled_from([("MB", 10**6), ("GiB", 2**30), ("GB", 10**9)]))
    return draw(st.sampled_from([(f"{count}{unit}", count * factor), (count * 10**6, count * 10**6)]))


def same(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, Any]]:
    """Values that mean what they are; lists become tuples."""
    return values.map(lambda value: (value, tuple(value) if isinstance(value, list) else value))


CODES = st.lists(st.integers(1, 99), min_size=1, max_size=3)
#: Key -> (what is written, what it means).
JOB_KEYS: dict[str, st.SearchStrategy[tuple[Any, Any]]] = {
    "description": same(SAFE_TEXT),
    "tags": same(st.lists(SAFE_TEXT.filter(bool), max_size=3)),
    "enabled": same(st.booleans()),
    "command": same(COMMANDS | st.lists(COMMANDS, min_size=1, max_size=4)),
    "env": same(st.dictionaries(st.from_regex(r"[A-Z_][A-Za-z0-9_]{0,5}", fullmatch=True), COMMANDS, max_size=3)),
    "umask": st.integers(0, 0o777).map(lambda mask: (f"{mask:03o}", mask)),
    "retries": same(st.integers(0, 1000)),
    "retry_backoff": st.integers(2, 200).map(lambda half: (half / 2, half / 2)),
    "retry_codes": same(CODES),
    "retry_lost": same(st.booleans()),
    "success_codes": same(CODES),
    "skip_codes": same(st.lists(st.integers(100, 255), max_size=3)),
    "finish": st.sampled_from(Finish).map(lambda finish: (finish.value, finish)),
    "stop_signal": st.sampled_from(SIGNALS).map(lambda name: (name, signal.Signals[f"SIG{name.removeprefix('SIG')}"])),
    "priority": same(st.integers(-1_000_000, 1_000_000)),
}
JOB_KEYS |= {"timeout": durations().filter(lambda pair: pair[1] > 0), "stop_timeout": durations(), "log_max": sizes()}
#: Names in the model that differ from the keys.
RENAMED = {"timeout": "timeout_s", "stop_timeout": "stop_timeout_s", "log_max": "log_max_bytes"}
RENAMED |= {"memory": "memory_bytes", "cpu_time": "cpu_time_s"}
#: Defaults of the configuration that are not the model's.
BUILT_IN: dict[str, Any] = {"retry_delay_s": 30.0, "retry_backoff": 2.0, "retry_max_delay_s": 600.0}
LIMIT_KEYS: dict[str, st.SearchStrategy[tuple[Any, Any]]] = {
    "memory": sizes(),
    "cpu_time": durations().filter(lambda pair: pair[1] >= 1),
    "open_files": same(st.integers(8, 2**20)),
    "nice": same(st.integers(-20, 19)),
}
OUTCOMES = st.sampled_from([("", Outcome.SUCCESS), *((f":{outcome}", outcome) for outcome in Outcome)])


@st.composite
def needs_of(draw: st.DrawFn, names: list[str]) -> tuple[list[Any], tuple[tuple[Need, ...], ...]]:
    """What is written, and what it means. Each name is used once at most."""
    written: list[Any] = []
    meant: list[tuple[Need, ...]] = []
    for name in draw(st.lists(st.sampled_from(names), unique=True, max_size=4)) if names else ():
        suffix, outcome = draw(OUTCOMES)
        joins = bool(written) and isinstance(written[-1], list) and draw(st.booleans())
        if joins:
            written[-1].append(name + suffix)
            meant[-1] = (*meant[-1], Need(name, outcome))
        else:
            written.append(draw(st.sampled_from([name + suffix, [name + suffix]])))
            meant.append((Need(name, outcome),))
    return written, tuple(meant)


@st.composite
def configurations(draw: st.DrawFn) -> tuple[str, dict[str, Job], dict[str, int]]:
    """A text, its jobs and its pools."""
    names = draw(st.lists(NAMES.filter(lambda name: name != "main"), unique=True, max_size=9))
    pools = {name: draw(st.integers(1, 9)) for name in draw(st.lists(NAMES, unique=True, max_size=2))}
    dags, job_names = names[:2], names[2:]
    text = "[pools]\n" + "".join(f"{toml(name)} = {slots}\n" for name, slots in pools.items())
    text += "".join(f"[dags.{toml(name)}]\n" for name in dags)
    jobs: dict[str, Job] = {}
    sections = []
    for name in job_names:
        written, job = draw(job_named(name, ["main", *dags], pools, list(jobs.values())))
        jobs[name] = job
        lines = [f"{key} = {toml(value)}" for key, value in draw(st.permutations(list(written.items())))]
        sections.append("\n".join([f"[jobs.{toml(name)}]", *lines, ""]))
    return text + "".join(draw(st.permutations(sections))), jobs, pools


def meaning_of(values: dict[str, tuple[Any, Any]]) -> dict[str, Any]:
    """Fields of the model."""
    return {RENAMED.get(key, key): value for key, (_, value) in values.items()}


@st.composite
def job_named(draw: st.DrawFn, name: str, dags: list[str], pools: dict[str, int], before: list[Job]) -> tuple[Any, Job]:
    keys = {"command", *draw(st.sets(st.sampled_from(sorted(JOB_KEYS))))}
    values = {key: draw(JOB_KEYS[key]) for key in sorted(keys)}
    limits = {key: draw(LIMIT_KEYS[key]) for key in sorted(draw(st.sets(st.sampled_from(sorted(LIMIT_KEYS)))))}
    dag = draw(st.sampled_from(dags))
    needs, meant = draw(needs_of([job.name for job in before if job.dag == dag]))
    written: dict[str, Any] = {key: value for key, (value, _) in values.items()}
    written |= {"dag": dag, "needs": needs, "limits": {key: value for key, (value, _) in limits.items()}}
    job = Job(
        name=name,
        dag=dag,
        dir="",
        needs=meant,
        limits=Limits(**meaning_of(limits)),
        **{**BUILT_IN, **meaning_of(values)},
    )
    has_pool = draw(st.booleans())
    if pools and has_pool:
        pool = draw(st.sampled_from(sorted(pools)))
        slots = draw(st.integers(1, pools[pool]))
        written |= {"pool": pool, "slots": slots}
        job = replace(job, pool=pool, slots=slots)
    return written, job


@SLOW
@given(configurations())
def test_what_is_generated_is_what_is_read(generated: tuple[str, dict[str, Job], dict[str, int]]) -> None:
    text, jobs, pools = generated
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "jobs.toml")
        file.write_text(text)
        config = load(file)
    read = {job.name: job for dag in config.definitions.dags.values() for job in dag.jobs}
    assert read == {name: replace(job, dir=folder) for name, job in jobs.items()}
    assert config.definitions.pools == pools
    for dag in config.definitions.dags.values():
        position = {job.name: index for index, job in enumerate(dag.jobs)}
        for job in dag.jobs:
            assert job.dag == dag.name
            assert all(position[need.job] < position[job.name] for group in job.needs for need in group)


# ---- broken ones -----------------------------------------------------------------------------------

SAMPLE = """
include = ["jobs.d/*.toml", "more.toml"]
[daemon]
timezone = "Europe/Berlin"
socket_mode = "0660"
keep = { history = "90d", logs_total = "10GB" }
[defaults]
timeout = "4h"
env = { A = "1" }
[pools]
warehouse = 4
[calendars.workdays]
weekdays = "mon-fri"
except = ["2026-12-25"]
[dags.nightly]
schedule = ["0 2 * * *", "every 15m"]
calendar = "workdays"
finish_by = "06:00"
[jobs.extract]
dag = "nightly"
command = ["./extract.sh", 'a b']
[jobs.load]
dag = "nightly"
command = '''./load.sh --full'''
needs = ["extract", ["eu", "us:done"], "extract:failed"]
limits = { memory = "2GB", cpu_time = "1h" }
success_codes = [0, 2]
stop_signal = "TERM"
expect = { runtime = { min = "1m", max = "15m" }, data_within = "10m" }
[jobs."us"]
command = "us"
dag = "nightly"
[jobs.eu]
needs = ["us"]
command = "eu"
dag = "nightly"
retries = 2
[notify.oncall]
urls = ["mailto://a"]
on = ["failed"]
[joblog]
poll = "10s"
"""
ODD_TOKENS = ["\0", "\x1b", "nan", "-1", "[[", "]]", "{}", "1979-05-27", "é"]
TOKENS = [*sorted(set(re.findall(r'[\w-]+|"[^"]*"|\S', SAMPLE))), *ODD_TOKENS]


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """The sample with a few pieces replaced, taken out, put in, or lines moved."""
    text = SAMPLE
    for _ in range(draw(st.integers(1, 4))):
        pieces = draw(st.sampled_from([re.split(r"(\W)", text), text.splitlines(keepends=True)]))
        at = draw(st.integers(0, len(pieces) - 1))
        new = draw(st.sampled_from([*TOKENS, "", "\n", *pieces[-20:]]) | st.text(max_size=3))
        pieces[at : at + draw(st.integers(0, 2))] = [new]
        text = "".join(pieces)
    content = text.encode(errors="replace")
    cut = draw(st.integers(0, len(content)))
    return draw(st.sampled_from([content, content, content, content[:cut], content[:cut] + b"\xff" + content[cut:]]))


@SLOW
@given(mutations(), st.booleans())
def test_nothing_but_config_error_comes_out_of_a_mutated_text(content: bytes, is_included: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        main = broken = Path(folder, "jobs.toml")
        if is_included:
            main.write_text("include = ['more.toml']")
            broken = Path(folder, "more.toml")
        broken.write_bytes(content)
        result = check(main)
        for problem in (*result.errors, *result.warnings):
            assert problem.file in (str(main), str(broken))
            assert 1 <= problem.line <= content.count(b"\n") + 2
            assert problem.message
            assert str(problem).isprintable()
        assert (result.config is None) == bool(result.errors)
        assert load_or_errors(main) == (result.config or result.errors)


def load_or_errors(file: Path) -> Config | list[Problem]:
    try:
        return load(file)
    except ConfigError as error:
        return error.errors


@SLOW
@given(mutations())
def test_the_scanner_agrees_with_the_reader_about_mutated_texts(content: bytes) -> None:
    try:
        text = content.decode()
        tables = tomli.loads(text)
    except ValueError:
        return
    assert set(key_lines(text)) == set(paths_of(tables))
