#!/bin/sh
# Which package do the settings belong to? Reads packages.tsv and config.tsv, writes config.matched:
# entry, files, bytes, and the package of that name, or - where none is called so.
set -eu
. "$(dirname "$0")/lib.sh"

match() {
    awk -F '\t' -v OFS='\t' '
        list == "packages" { installed[$1] = 1; next }
        {
            name = tolower($1)
            sub(/\.(d|conf|cfg)$/, "", name)        # logrotate.d and logrotate.conf are of logrotate
            print $0, (name in installed) ? name : "-"
        }
    ' list=packages "$work/packages.tsv" list=config "$work/config.tsv"
}

save config.matched match
echo "$(wc -l <"$work/config.matched") entries of /etc looked up"
