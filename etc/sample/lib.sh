# shellcheck shell=sh
# What every script of the sample shares: the work folder of a run date, and files that are whole or not there.

# One sort order and one number format, whatever the machine's language.
export LC_ALL=C

# jobd sets JOBD_RUN_DATE; without jobd the scripts work on today.
out=${INVENTORY_OUT:-${TMPDIR:-/tmp}/jobd-inventory}
work=$out/${JOBD_RUN_DATE:-$(date +%Y-%m-%d)}
mkdir -p "$work"

# save FILE COMMAND…: what COMMAND prints becomes FILE in the work folder.
# A killed script leaves FILE as it was, so that nothing downstream ever reads half of it.
save() {
    file=$work/$1
    shift
    "$@" >"$file.part"
    mv "$file.part" "$file"
}
