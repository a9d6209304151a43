#!/bin/sh
# Reads packages.raw, writes packages.tsv: name, version, KiB, section; sorted by name.
# Removed packages, second architectures of the same package and broken lines are dropped.
set -eu
. "$(dirname "$0")/lib.sh"

clean() {
    sort -k 2 "$work/packages.raw" | awk -F '\t' -v OFS='\t' '
        NF != 5 || $2 == "" || $1 !~ /^[ih]i/ || seen[$2]++ { dropped++; next }
        {
            kib = ($4 ~ /K$/) ? $4 + 0 : $4 / 1024
            sub(/^.*\//, "", $5)                    # contrib/net is net
            print $2, $3, int(kib), $5 == "" ? "other" : $5
            kept++
        }
        END {
            printf "%d kept, %d dropped\n", kept, dropped > "/dev/stderr"
            exit kept == 0                          # a machine without packages: something is wrong upstream
        }
    '
}

save packages.tsv clean
