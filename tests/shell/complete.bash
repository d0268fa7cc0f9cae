# SPDX-License-Identifier: Apache-2.0
# bash complete.bash COMPLETION WITH WORD...: what bash offers for the last WORD. WITH is the file
# of bash-completion's functions, or "".
[[ -z $2 ]] || source "$2"
source "$1"
compopt() { :; } # bash has it only while it completes for an editor
COMP_WORDS=("${@:3}")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
COMP_LINE="${COMP_WORDS[*]}"
COMP_POINT=${#COMP_LINE}
"$(complete -p vmsnap | sed 's/.*-F \([^ ]*\) .*/\1/')" vmsnap "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
((${#COMPREPLY[@]} == 0)) || printf '%s\n' "${COMPREPLY[@]}"
