"""From files to entries: every table and key read by its Key, every name defined once.

What is wrong within one key or name is told here; what only shows when keys are seen together is left
to `supervisor.config.checks`. Called by `supervisor.config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from supervisor import __version__
from supervisor.config.keys import JOB, SECTIONS, Key, Keys, Section
from supervisor.config.problems import Place, Report, Source
from supervisor.config.values import NAME, NAME_RULE, WRONG, BadValueError, kind_of, shown

NOT_BUILT = f"not built yet in jobd {__version__}; take it out"


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that is defined, and where. The value of a table is a dict, with WRONG for what could not be read."""

    place: Place
    value: Any


@dataclass(frozen=True, slots=True)
class JobEntry:
    """A job with the defaults beneath it. `values` has every key: the job's, else of [defaults], else the built-in."""

    name: str
    own: Entry
    defaults: Entry
    values: dict[str, Any]

    def readable(self, *keys: str) -> bool:
        return all(self.values[key] is not WRONG for key in keys)

    def is_written(self, key: str) -> bool:
        return key in self.own.value or key in self.defaults.value

    def place_of(self, key: str) -> Place:
        """Where the value of a key was written; within the job's own table if nowhere."""
        origin = self.defaults if key in self.defaults.value and key not in self.own.value else self.own
        return origin.place.at(key)


@dataclass(frozen=True, slots=True)
class Tables:
    """All entries. `singles`: by section; `named`: by section and name; `jobs`: those that are tables."""

    singles: dict[str, Entry] = field(default_factory=dict)
    named: dict[str, dict[str, Entry]] = field(
        default_factory=lambda: {name: {} for name, section in SECTIONS.items() if section.named}
    )
    jobs: dict[str, JobEntry] = field(default_factory=dict)


def read_tables(files: list[Source], report: Report) -> Tables:
    """Everything that the files define; the main file is the first."""
    tables = Tables()
    for source in files:
        for name, raw in source.tables.items():
            place = Place(source).at(name)
            section = SECTIONS.get(name)
            if section is None:
                report.error(place, _unknown_key(name, SECTIONS, report))
            elif section.main_only and source is not files[0]:
                report.error(place, f"only the main file ({files[0].shown}) may have this; move it there")
            else:
                _read_section(place, section, raw, tables, report)
    defaults = tables.singles.setdefault("defaults", Entry(Place(files[0]), {}))
    beneath = _over({name: key.default for name, key in JOB.items()}, defaults.value)
    for name, own in tables.named["jobs"].items():
        if own.value is not WRONG:
            tables.jobs[name] = JobEntry(name, own, defaults, _over(beneath, own.value))
    return tables


def _read_section(place: Place, section: Section, raw: Any, tables: Tables, report: Report) -> None:
    name = str(place.path[0])
    if not section.named:
        value = _read_value(place, section.key, raw, report)
        if value is not WRONG:
            tables.singles[name] = Entry(place, value)
    elif not isinstance(raw, dict):
        report.error(place, f"expected a table of names, found {kind_of(raw)}")
    else:
        for entry_name, content in raw.items():
            _read_named(place.at(entry_name), section.key, content, tables.named[name], report)


def _read_named(place: Place, key: Key, raw: Any, known: dict[str, Entry], report: Report) -> None:
    name = str(place.path[-1])
    if not NAME.fullmatch(name):
        report.error(place, f"not a name: {NAME_RULE}")
    value = _read_value(place, key, raw, report)
    if name in known:
        report.error(place, f"already defined at {known[name].place}; a name may be defined once")
    else:
        known[name] = Entry(place, value)  # even if it is WRONG: who names it must not be told that it is unknown


def _read_value(place: Place, key: Key, raw: Any, report: Report) -> Any:
    """The value, or WRONG with its errors told."""
    value: Any = WRONG
    if isinstance(key.read, Mapping):
        value = _read_table(place, key.read, raw, report)
    else:
        try:
            value = key.read(raw)
        except BadValueError as wrong:
            value = wrong.readable
            for reason in wrong.reasons:
                report.error(place, reason)
    if not key.built:
        report.error(place, NOT_BUILT)
    return value


def _read_table(place: Place, keys: Keys, raw: Any, report: Report) -> Any:
    if not isinstance(raw, dict):
        report.error(place, f"expected a table, found {kind_of(raw)}")
        return WRONG
    values = {}
    for name, content in raw.items():
        key = keys.get(name)
        if key is None:
            hint = _dotted_name_hint(place, name, content)
            report.error(place.at(name), f"unknown key{hint}" if hint else _unknown_key(name, keys, report))
            continue
        values[name] = _read_value(place.at(name), key, content, report)
    return values


def _unknown_key(name: str, allowed: Mapping[str, Any], report: Report) -> str:
    return "unknown key" + (report.near(name, allowed.keys()) or f"; allowed: {', '.join(allowed)}")


def _dotted_name_hint(place: Place, name: str, content: Any) -> str:
    """For [jobs.load.eu], where the job "load.eu" was meant."""
    if not isinstance(content, dict) or len(place.path) != 2:
        return ""
    section, first = place.path
    return f"; a name with a dot is put in quotes: [{section}.{shown(f'{first}.{name}')}]"


def _over(beneath: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A job's own values over its defaults; tables (env, limits) key by key."""
    values = {**beneath, **own}
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(beneath[key], dict):
            values[key] = {**beneath[key], **value}
    return values
