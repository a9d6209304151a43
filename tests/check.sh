#!/bin/sh
# Every check of the project: lint, layout, types, tests. Arguments go to pytest.
# Installs what they need: Python libraries into .venv, and Debian packages where apt-get can.
set -eu
cd "$(dirname "$0")/.."
. etc/setup.sh

# Programs that tests and bench/ start; a test that misses one is skipped and says so.
missing=
for need in strace:strace ninja:ninja-build make:make mariadbd:mariadb-server; do
    PATH=$PATH:/usr/sbin command -v "${need%%:*}" >/dev/null || missing="$missing ${need##*:}"
done
# shellcheck disable=SC2086  # a list of words
[ -z "$missing" ] || apt_install $missing || say "going on without$missing"

make_venv ".[dev]"
.venv/bin/ruff check --quiet .
.venv/bin/ruff format --quiet --check .
.venv/bin/mypy
.venv/bin/python -m pytest "$@"
