# bash completion of tare. Commands, options and the values that are a choice come from `tare help`.
_tare() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} tare=${COMP_WORDS[0]}
    local name=${COMP_WORDS[1]} text choice
    COMPREPLY=()
    if ((COMP_CWORD == 1)) || { ((COMP_CWORD == 2)) && [[ $name == help ]]; }; then
        text=$("$tare" help 2>/dev/null | sed -n 's/^  \([a-z][a-z]*\)  .*/\1/p')
        ((COMP_CWORD == 1)) && text="$text help --help --version"
        mapfile -t COMPREPLY < <(compgen -W "$text" -- "$cur")
        return
    fi
    text=$("$tare" help "$name" 2>/dev/null) || return
    if [[ $cur == -* ]]; then
        text=$(grep -Eo -- '(^  |[[, ])--[a-z][a-z0-9-]*' <<<"$text" | tr -d '[, ' | sort -u)
        mapfile -t COMPREPLY < <(compgen -W "$text" -- "$cur")
        return
    fi
    if [[ $prev == --* ]]; then # "--target mindie|vllm" in the help: one of these
        choice=$(grep -Eo -- "(^  |\[)$prev [a-z0-9_|-]+" <<<"$text" | head -n 1)
        if [[ -n $choice ]]; then
            choice=${choice##* }
            mapfile -t COMPREPLY < <(compgen -W "${choice//|/ }" -- "$cur")
            return
        fi
    fi
    mapfile -t COMPREPLY < <(compgen -f -- "$cur")
}
complete -o filenames -F _tare tare
