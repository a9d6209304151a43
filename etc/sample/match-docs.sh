#!/bin/sh
# Whose documentation is it? Reads packages.raw and docs.tsv, writes docs.matched: entry, files, bytes,
# and installed, removed or unknown. It takes the raw list because only that one has the removed packages.
set -eu
. "$(dirname "$0")/lib.sh"

match() {
    awk -F '\t' -v OFS='\t' '
        list == "packages" { if (state[$2] != "installed") state[$2] = ($1 ~ /^[ih]i/) ? "installed" : "removed"; next }
        { print $0, ($1 in state) ? state[$1] : "unknown" }
    ' list=packages "$work/packages.raw" list=docs "$work/docs.tsv"
}

save docs.matched match
cut -f 4 "$work/docs.matched" | sort | uniq -c
