#!/bin/sh
# The manual page: what the command says of itself, as roff.
#     man_page.sh man_page.awk tare.1 [EMULATOR] build/release/tare
set -eu
awk_program=$1 page=$2
shift 2
overview=$("$@" help)
{
    printf '%s\n' "$overview" | awk -v part=overview -f "$awk_program"
    for command in $(printf '%s\n' "$overview" | sed -n 's/^  \([a-z][a-z]*\)  .*/\1/p'); do
        "$@" help "$command" | awk -v part=command -v name="$command" -f "$awk_program"
    done
    awk -v part=end -f "$awk_program" /dev/null
} >"$page.new"
mv "$page.new" "$page"
