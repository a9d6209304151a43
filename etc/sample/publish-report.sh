#!/bin/sh
# Writes report.md from all that was found, and puts it beside the work folders as the newest.
set -eu
. "$(dirname "$0")/lib.sh"

# rows: the first ten lines as rows of a Markdown table; the third column is KiB.
rows() {
    head -n 10 | awk -F '\t' '{ printf "| %s | %s | %.1f |\n", $1, $2, $3 / 1024 }'
}

summary() {
    awk -F '\t' '
        list == "packages" { packages++; kib += $3 }
        list == "docs" { folders++; bytes += $3; if ($4 != "installed") strays++ }
        list == "config" { entries++; files += $2; if ($4 != "-") owned++ }
        END {
            printf "- %d packages, %.1f MiB installed\n", packages, kib / 1024
            printf "- %d folders of documentation, %.1f MiB; %d of them without an installed package of that name\n",
                folders, bytes / 1048576, strays
            printf "- %d files of settings in %d entries of /etc; %d entries bear the name of a package\n",
                files, entries, owned
        }
    ' list=packages "$work/packages.tsv" list=docs "$work/docs.matched" list=config "$work/config.matched"
}

report() {
    echo "# What is installed on $(uname -n)"
    echo
    echo "As of ${JOBD_RUN_DATE:-today}${JOBD_RUN:+, run $JOBD_RUN}."
    echo
    summary
    printf '\n## Largest sections\n\n| section | packages | MiB |\n|---|---:|---:|\n'
    rows <"$work/sections.tsv"
    printf '\n## Largest packages\n\n| package | version | MiB |\n|---|---|---:|\n'
    sort -t "$(printf '\t')" -k 3,3nr -k 1,1 "$work/packages.tsv" | rows
}

save report.md report
cp "$work/report.md" "$out/report.md.part"
mv "$out/report.md.part" "$out/report.md"
echo "$out/report.md"
