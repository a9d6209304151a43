#!/bin/sh
# Reads packages.tsv, writes sections.tsv: section, packages, KiB; the largest first.
set -eu
. "$(dirname "$0")/lib.sh"

add_up() {
    awk -F '\t' '
        { packages[$4]++; kib[$4] += $3 }
        END { for (section in packages) printf "%s\t%d\t%.0f\n", section, packages[section], kib[section] }
    ' "$work/packages.tsv" | sort -t "$(printf '\t')" -k 3,3nr -k 1,1
}

save sections.tsv add_up
echo "$(wc -l <"$work/sections.tsv") sections"
