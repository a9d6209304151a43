# shellcheck shell=sh
# What quickstart.sh and tests/check.sh share: a Python that is new enough, the environment .venv, Debian packages.
# Sourced with the checkout as current folder.

say() { printf 'jobd: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# Prints the first Python of 3.11 or later.
find_python() {
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"
    elif ! command -v sudo >/dev/null; then return 1
    elif [ -t 0 ]; then sudo "$@"
    else sudo -n "$@"
    fi
}

# apt_install PACKAGE…: installs them and starts no service. Says what to do by hand where it cannot.
apt_install() {
    if ! command -v apt-get >/dev/null; then
        say "no apt-get here; install what corresponds to these by hand: $*"
        return 1
    fi
    say "installing $* (apt-get)"
    # shellcheck disable=SC2016  # the text is for the inner shell
    as_root env DEBIAN_FRONTEND=noninteractive sh -euc '
        guard=/usr/sbin/policy-rc.d                 # the packages ask it whether their services may start
        if [ ! -e "$guard" ]; then
            trap "rm -f $guard" EXIT
            trap "exit 1" HUP INT TERM
            printf "#!/bin/sh\nexit 101\n" >"$guard"
            chmod +x "$guard"
        fi
        apt-get -qq update
        apt-get -qq -y --no-install-recommends install "$@" </dev/null >/dev/null
    ' apt_install "$@" || {
        say "that did not work; as root: apt-get update && apt-get install $*"
        return 1
    }
}

# make_venv WHAT: .venv with WHAT in it, which is . (jobd) or .[dev] (and what its tests need).
# Does nothing if that was done before and pyproject.toml is the same since.
make_venv() {
    stamp=.venv/installed${1#.}
    if cmp -s pyproject.toml "$stamp" && .venv/bin/python -c '' 2>/dev/null; then return; fi
    if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
        python=$(find_python) || { apt_install python3 python3-venv && python=$(find_python); } ||
            die "needs Python 3.11 or later, and found none on PATH ($PATH); install one and run this again"
        if ! "$python" -c 'import ensurepip' 2>/dev/null; then
            apt_install "$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')" ||
                die "$python has no venv module"
        fi
        say "making .venv with $("$python" --version)"
        "$python" -m venv --clear .venv
    fi
    say "installing $1 into .venv"
    .venv/bin/python -m pip install -qq --disable-pip-version-check --editable "$1"
    cp pyproject.toml "$stamp"
}
