#!/bin/sh
# From a fresh checkout to a finished run: makes .venv, starts jobd on etc/jobs.toml, runs the sample to its end.
# Run it again at any time: it makes a new run with the jobd that is already there. Everything it writes
# is below .venv/ and var/; delete both (after `jobctl shutdown`) and nothing is left.
set -eu
cd "$(dirname "$0")/.."
. etc/setup.sh

state=$PWD/var/jobd
export JOBD_SOCKET="$state/jobd.sock"
jobctl=.venv/bin/jobctl
log=var/jobd.log

# Starts jobd in a session of its own, so that Ctrl-C here does not reach it, and waits until it answers.
start_daemon() {
    mkdir -p var
    setsid=$(command -v setsid || command -v nohup)
    "$setsid" .venv/bin/jobd -c etc/jobs.toml --state-dir "$state" --socket "$JOBD_SOCKET" </dev/null >>"$log" 2>&1 &
    tries=0
    until "$jobctl" ping >/dev/null 2>&1; do
        tries=$((tries + 1))
        if ! kill -0 "$!" 2>/dev/null || [ "$tries" -ge 100 ]; then
            tail -n 20 "$log" >&2
            die "jobd did not start; its last words are above, all of them in $log"
        fi
        sleep 0.1
    done
}

make_venv .
if "$jobctl" ping >/dev/null 2>&1; then
    say "a jobd is already running here; using it"
else
    say "starting jobd"
    start_daemon
fi

"$jobctl" start inventory --wait || {
    say "the sample did not succeed; see: .venv/bin/jobctl --socket $JOBD_SOCKET status, and $log"
    exit 1
}

cat <<END

The report is in var/inventory/report.md. jobd goes on running. To try next:

  export PATH="$PWD/.venv/bin:\$PATH" JOBD_SOCKET="$JOBD_SOCKET"
  jobctl status                  how things stand
  jobctl logs publish-report     what a job printed
  jobctl events -f               everything that happens, as it happens
  jobctl restart inventory       a new run
  jobctl shutdown                stop jobd; then edit etc/jobs.toml and run this again
END
