#compdef vmsnap
# SPDX-License-Identifier: Apache-2.0
# zsh completion for vmsnap(1).

_vmsnap_mounts() {
    local mount expl
    local -aU mounts
    while read -r _ _ _ _ mount _; do
        mounts+=("${(g:o:)mount}") # the kernel writes a space as \040
    done </proc/self/mountinfo
    _wanted mounts expl 'mount point' compadd -a mounts
}

_vmsnap() {
    local context state state_descr line ret=1
    local -A opt_args
    local -a verbs every selection session
    verbs=(
        'run:take a snapshot with a command'
        'freeze:quiesce and freeze, and hold that'
        'thaw:end what freeze began'
        'check:check configuration, scripts and filesystems'
        'plan:show which filesystems would be frozen'
        'init:write the config and scripts of an app'
        'provision:write the configuration of one document'
        'integrate:connect to the agent of the platform'
        'hook:begin or end a session for an agent'
        'status:show the session in progress or the last one'
        'history:show past sessions'
        'plot:draw a session as SVG'
    )
    every=(
        '(- *)'{-h,--help}'[print a short help]'
        '--etc=[configuration]:directory:_files -/'
        '--run=[tmpfs]:directory:_files -/'
        '--state=[last result]:directory:_files -/'
        '--json[print JSON]'
    )
    selection=(
        '*--only=[freeze no others]:mount point:_vmsnap_mounts'
        '*--exclude=[do not freeze]:mount point:_vmsnap_mounts'
    )
    session=(
        '--hold=[seconds until the thaw]:seconds: '
        '--require=[no snapshot below]:level:(crash filesystem application)'
        '--no-fsfreeze[the platform freezes]'
    )
    _arguments -S \
        '(- *)'{-h,--help}'[print a short help]' '(- *)--version[print the version]' \
        '1:command:->command' '*::argument:->argument' && return
    case $state in
        command) _describe -t commands command verbs && ret=0 ;;
        argument)
            local at=${words[(i)--]}
            if [[ $words[1] == run ]] && ((at < CURRENT)); then
                shift at words
                ((CURRENT -= at))
                _normal && return
                return 1
            fi
            case $words[1] in
                run | freeze) _arguments -S $every $selection $session && ret=0 ;;
                thaw) _arguments $every '(--force)--failed[and say that the snapshot has not been taken]' '(--failed)--force[thaw what a killed session left frozen]' '1:session: ' && ret=0 ;;
                check) _arguments $every $selection '--watch[check again when scripts change]' && ret=0 ;;
                plan) _arguments $every $selection && ret=0 ;;
                init) _arguments $every '--quiesce=[set up for a database]:server:(postgresql mariadb mysql redis valkey)' '1:name: ' && ret=0 ;;
                provision) _arguments $every '(1)--file=[read the document from a file]:file:_files' '--dry-run[write nothing]' '(--file)1: :((-\:read\ the\ document\ from\ stdin))' && ret=0 ;;
                integrate) _arguments $every '--remove[undo it]' '--dry-run[write nothing]' '1:agent:(qemu vmware google aws nutanix azure)' && ret=0 ;;
                hook) _arguments $every '--within=[how long the agent waits]:seconds: ' '1:agent:(qemu vmware google aws nutanix azure)' '2:event:(freeze freezeFail thaw pre post pre-script post-script dry-run pre_freeze post_thaw)' '*:argument: ' && ret=0 ;;
                status) _arguments $every && ret=0 ;;
                history) _arguments $every '--since=[a time, as journalctl takes it]:time: ' && ret=0 ;;
                plot) _arguments $every '1:session: ' && ret=0 ;;
            esac
            ;;
    esac
    return ret
}

_vmsnap "$@"
