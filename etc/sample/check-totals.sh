#!/bin/sh
# Did anything get lost on the way? Compares the totals before and after joining and adding up.
# Fails when two of them differ: then nothing is published, until someone has looked and said `jobctl retry`.
set -eu
. "$(dirname "$0")/lib.sh"

# total FILE COLUMN: the sum of a column; of column 0: the number of lines.
total() {
    awk -F '\t' -v column="$2" '{ sum += column ? $column : 1 } END { printf "%.0f", sum }' "$work/$1"
}

wrong=0
# same WHAT BEFORE AFTER
same() {
    if [ "$2" = "$3" ]; then
        echo "ok      $1: $2"
    else
        echo "WRONG   $1: $2 before, $3 after"
        wrong=1
    fi
}

same 'folders of documentation' "$(total docs.tsv 0)" "$(total docs.matched 0)"
same 'bytes of documentation' "$(total docs.tsv 3)" "$(total docs.matched 3)"
same 'packages' "$(total packages.tsv 0)" "$(total sections.tsv 2)"
same 'KiB of packages' "$(total packages.tsv 3)" "$(total sections.tsv 3)"
exit "$wrong"
