#!/bin/sh
# Which packages are on this machine? Writes packages.raw: status, name, version, size, section.
# Sizes are bytes, or KiB with a K behind; clean-packages.sh brings them together.
set -eu
. "$(dirname "$0")/lib.sh"

from_dpkg() {
    # shellcheck disable=SC2016  # the ${…} are dpkg's
    dpkg-query -W -f '${db:Status-Abbrev}\t${Package}\t${Version}\t${Installed-Size}K\t${Section}\n'
}

from_rpm() {
    rpm -qa --qf 'ii\t%{NAME}\t%{VERSION}-%{RELEASE}\t%{SIZE}\t%{GROUP}\n'
}

from_apk() {
    awk -F: -v OFS='\t' '
        $1 == "P" { name = $2 }
        $1 == "V" { version = $2 }
        $1 == "I" { size = $2 }
        $1 == "" && name != "" { print "ii", name, version, size, "alpine"; name = "" }
        END { if (name != "") print "ii", name, version, size, "alpine" }
    ' /lib/apk/db/installed
}

# No package manager that we know: each folder of /usr/share stands for one package.
from_folders() {
    for folder in /usr/share/*/; do
        kib=$(du -sk "$folder" 2>/dev/null | cut -f 1)
        printf 'ii\t%s\t-\t%sK\tshare\n' "$(basename "$folder")" "$kib"
    done
}

if command -v dpkg-query >/dev/null; then source=dpkg
elif command -v rpm >/dev/null; then source=rpm
elif [ -r /lib/apk/db/installed ]; then source=apk
else source=folders
fi
save packages.raw "from_$source"
echo "$(wc -l <"$work/packages.raw") lines from $source"
