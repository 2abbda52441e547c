# Makes roff of the texts of `tare help` (part=overview) and `tare help NAME` (part=command); part=end
# adds what the help does not say. In a help text a line that begins with a dash after two blanks is
# an option, its explanation stands in the column of that of the first one, deeper lines go on with
# it (or begin it), and all else is text.

function roff(text) {
    gsub(/\\/, "\\e", text)
    gsub(/-/, "\\-", text)
    gsub(/'/, "\\(aq", text)
    sub(/^\./, "\\\\\\&.", text)
    return text
}

function end_paragraph() {
    ended = 1
    in_item = 0
}

# An option or a command, and what it does.
function item(tag, text) {
    print ".TP"
    print ".B " roff(tag)
    if (text != "") print roff(text)
    ended = 0
    in_item = 1
}

function explanation_column(line) {
    match(line, /^  -[^ ]*( [^ ]+)*  +/)
    return RLENGTH
}

part == "overview" && NR == 1 {
    split($0, words, ": ")
    version = words[1]
    sub(/^tare /, "", version)
    print ".\\\" Made from the texts of `tare help`."
    print ".TH TARE 1 \"\" \"tare " version "\" \"User Commands\""
    print ".nh\n.ad l" # options stay whole
    print ".SH NAME\ntare \\- " substr($0, length(words[1]) + 3)
    print ".SH SYNOPSIS\n.B tare\n.I COMMAND\n\\&...\n.SH COMMANDS"
    next
}
part == "overview" && /^usage:/ { next }

part == "command" && /^usage:/ {
    sub(/^usage: /, "")
    print ".SH \"TARE " toupper(name) "\"\n.B " roff($0)
    next
}

/^$/ { end_paragraph(); next }

/^  [a-z]/ && part == "overview" {
    tag = $1
    sub(/^ *[^ ]+ +/, "")
    item(tag, $0)
    next
}

/^  -/ {
    if (!column) column = explanation_column($0)
    at = substr($0, column, 1) ~ /[^ ]/ ? length($0) : column # a long one has its line for itself
    tag = substr($0, 3, at - 2)
    sub(/ +$/, "", tag)
    item(tag, substr($0, at + 1))
    next
}

{
    if (ended || (/^[^ ]/ && in_item)) print ".PP"
    ended = in_item = 0
    sub(/^ +/, "")
    print roff($0)
}

END {
    if (part == "end") {
        print ".SH \"EXIT STATUS\""
        item("0", "done")
        item("1", "failed")
        item("2", "wrong command line or recipe, refused budget or folder; nothing was done")
        item("130, 143", "ended by SIGINT or SIGTERM")
    }
}
