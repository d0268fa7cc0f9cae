# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# bash completion for vmsnap(1). Works with and without the functions of bash-completion.

# Mount points that begin as the current word does. The kernel writes a space as \040.
_vmsnap_mounts() {
    local mount
    compopt -o filenames
    while read -r _ _ _ _ mount _; do
        printf -v mount '%b' "${mount//\\/\\0}"
        [[ $mount == "$1"* ]] && COMPREPLY+=("$mount")
    done </proc/self/mountinfo
}

# The command after `vmsnap run --`, whose first word is number $1.
_vmsnap_command() {
    if declare -F _comp_command_offset >/dev/null; then
        _comp_command_offset "$1"
    elif declare -F _command_offset >/dev/null; then
        _command_offset "$1"
    elif ((COMP_CWORD == $1)); then
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -c -- "${COMP_WORDS[COMP_CWORD]}")
    else
        compopt -o default
    fi
}

_vmsnap() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local command=${COMP_WORDS[1]} words="" i
    COMPREPLY=()
    for ((i = 2; i < COMP_CWORD; i++)); do
        if [[ ${COMP_WORDS[i]} == -- ]]; then
            [[ $command != run ]] || _vmsnap_command $((i + 1))
            return
        fi
    done
    if [[ $current == "=" ]]; then # --option=value comes as three words
        current=""
    elif [[ $previous == "=" ]]; then
        previous=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    current=${current#[\"\']}
    current=${current//\\/}
    if ((COMP_CWORD == 1)); then
        words="run freeze thaw check plan init provision integrate hook status history plot --help --version"
    else
        case $previous in
            --only | --exclude)
                _vmsnap_mounts "$current"
                return
                ;;
            --require) words="crash filesystem application" ;;
            --quiesce) words="postgresql mariadb mysql redis valkey" ;;
            --etc | --run | --state)
                compopt -o filenames
                mapfile -t COMPREPLY < <(compgen -d -- "$current")
                return
                ;;
            --file)
                compopt -o filenames
                mapfile -t COMPREPLY < <(compgen -f -- "$current")
                return
                ;;
            --hold | --since | --within) return ;;
        esac
        if [[ $command == integrate && $current != -* ]]; then
            words="qemu vmware google aws nutanix azure"
        elif [[ $command == hook && $current != -* ]]; then
            case $COMP_CWORD:$previous in
                2:*) words="qemu vmware google aws nutanix azure" ;;
                3:qemu) words="freeze thaw" ;;
                3:vmware) words="freeze freezeFail thaw" ;;
                3:google | 3:azure) words="pre post" ;;
                3:aws) words="pre-script post-script dry-run" ;;
                3:nutanix) words="pre_freeze post_thaw" ;;
            esac
        fi
    fi
    if [[ -z $words && $current == -* ]]; then
        case $command in
            run | freeze) words="--only --exclude --hold --require --no-fsfreeze" ;;
            thaw) words="--failed --force" ;;
            check) words="--only --exclude --watch" ;;
            plan) words="--only --exclude" ;;
            provision) words="- --file --dry-run" ;;
            integrate) words="--remove --dry-run" ;;
            hook) words="--within" ;;
            history) words="--since" ;;
            init) words="--quiesce" ;;
            status | plot) ;;
            *) return ;;
        esac
        words+=" --etc --run --state --json --help"
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}

complete -F _vmsnap vmsnap
