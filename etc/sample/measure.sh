#!/bin/sh
# usage: measure.sh FOLDER FILE
# How much lies below FOLDER? Writes FILE: entry, files, bytes; one line for each entry of FOLDER.
# What this user may not read is left out, and a folder that does not exist is empty.
set -eu
. "$(dirname "$0")/lib.sh"

measure() {
    find "$1" -type f -exec ls -ln {} + 2>/dev/null | awk -v OFS='\t' -v root="$1/" '
        /^-/ {
            bytes = $5
            sub(/^[^\/]*/, "")                      # only the path is left
            entry = substr($0, length(root) + 1)
            sub(/\/.*/, "", entry)
            files[entry]++
            total[entry] += bytes
        }
        END { for (entry in files) printf "%s\t%d\t%.0f\n", entry, files[entry], total[entry] }
    ' | sort
}

save "$2" measure "$1"
echo "$(wc -l <"$work/$2") entries below $1"
