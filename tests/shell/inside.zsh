# SPDX-License-Identifier: Apache-2.0
# In the zsh of capture.zsh: bind Ctrl-X to a widget that prints what would be offered.
autoload -U compinit
compinit -D
typeset -aU found
compadd() {
    if [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\ * ]]; then # only asks what matches
        builtin compadd "$@"
        return
    fi
    local -a hits
    builtin compadd -A hits "$@"
    found+=($hits)
    builtin compadd "$@"
}
capture() {
    found=()
    _main_complete
    print -r -- VMSNAP-BEGIN
    print -rl -- $found
    print -r -- VMSNAP-END
    compstate[insert]= compstate[list]=
}
zle -C capture complete-word capture
bindkey '^X' capture
print "VMSNAP""-READY" # the terminal echoes what is typed
