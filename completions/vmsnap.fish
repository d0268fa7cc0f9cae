# SPDX-License-Identifier: Apache-2.0
# fish completion for vmsnap(1).

# Whether the words so far begin with one of these commands, and none is a COMMAND's.
function __vmsnap_in
    set -l words (commandline -opc)
    set -q words[2]; and contains -- $words[2] $argv; and not contains -- -- $words
end

function __vmsnap_begins
    test (count (commandline -opc)) -eq 1
end

function __vmsnap_mounts # the kernel writes a space as \040
    while read -l line
        printf '%b\n' (string replace -a '\\' '\\0' -- (string split ' ' -- $line)[5])
    end </proc/self/mountinfo
end

function __vmsnap_runs
    set -l words (commandline -opc)
    test "$words[2]" = run; and contains -- -- $words
end

function __vmsnap_command # what follows `vmsnap run --`
    set -l words (commandline -opc)
    set -e words[1..(contains -i -- -- $words)]
    complete -C (string join ' ' -- (string escape -- $words) (commandline -ct))
end

set -l every run freeze thaw check plan init provision integrate hook status history plot
complete -c vmsnap -f
complete -c vmsnap -n __vmsnap_begins -l version -d 'print the version'
complete -c vmsnap -n "__vmsnap_begins; or __vmsnap_in $every" -s h -l help -d 'print a short help'

complete -c vmsnap -n __vmsnap_begins -a run -d 'take a snapshot with a command'
complete -c vmsnap -n __vmsnap_begins -a freeze -d 'quiesce and freeze, and hold that'
complete -c vmsnap -n __vmsnap_begins -a thaw -d 'end what freeze began'
complete -c vmsnap -n __vmsnap_begins -a check -d 'check configuration, scripts and filesystems'
complete -c vmsnap -n __vmsnap_begins -a plan -d 'show which filesystems would be frozen'
complete -c vmsnap -n __vmsnap_begins -a init -d 'write the config and scripts of an app'
complete -c vmsnap -n __vmsnap_begins -a provision -d 'write the configuration of one document'
complete -c vmsnap -n __vmsnap_begins -a integrate -d 'connect to the agent of the platform'
complete -c vmsnap -n __vmsnap_begins -a hook -d 'begin or end a session for an agent'
complete -c vmsnap -n __vmsnap_begins -a status -d 'show the session in progress or the last one'
complete -c vmsnap -n __vmsnap_begins -a history -d 'show past sessions'
complete -c vmsnap -n __vmsnap_begins -a plot -d 'draw a session as SVG'

set -l options complete -c vmsnap -n "__vmsnap_in run freeze check plan"
$options -l only -x -a '(__vmsnap_mounts)' -d 'freeze no others'
$options -l exclude -x -a '(__vmsnap_mounts)' -d 'do not freeze'
set options complete -c vmsnap -n "__vmsnap_in run freeze"
$options -l hold -x -d 'seconds until the thaw'
$options -l require -x -a 'crash filesystem application' -d 'no snapshot below'
$options -l no-fsfreeze -d 'the platform freezes'
complete -c vmsnap -n "__vmsnap_in thaw" -l failed -d 'and say that the snapshot has not been taken'
complete -c vmsnap -n "__vmsnap_in thaw" -l force -d 'thaw what a killed session left frozen'
complete -c vmsnap -n "__vmsnap_in check" -l watch -d 'check again when scripts change'
complete -c vmsnap -n "__vmsnap_in init" -l quiesce -x -a 'postgresql mariadb mysql redis valkey' -d 'set up for a database'
complete -c vmsnap -n "__vmsnap_in provision" -a - -d 'read the document from stdin'
complete -c vmsnap -n "__vmsnap_in provision" -l file -r -F -d 'read the document from a file'
complete -c vmsnap -n "__vmsnap_in provision" -l dry-run -d 'write nothing'
complete -c vmsnap -n "__vmsnap_in integrate" -a 'qemu vmware google aws nutanix azure' -d agent
complete -c vmsnap -n "__vmsnap_in integrate" -l remove -d 'undo it'
complete -c vmsnap -n "__vmsnap_in integrate" -l dry-run -d 'write nothing'
complete -c vmsnap -n "__vmsnap_in hook" -a 'qemu vmware google aws nutanix azure' -d agent
complete -c vmsnap -n "__vmsnap_in hook" -l within -x -d 'how long the agent waits'
complete -c vmsnap -n "__vmsnap_in history" -l since -x -d 'a time, as journalctl takes it'
set options complete -c vmsnap -n "__vmsnap_in $every"
$options -l etc -x -a '(__fish_complete_directories (commandline -ct))' -d configuration
$options -l run -x -a '(__fish_complete_directories (commandline -ct))' -d tmpfs
$options -l state -x -a '(__fish_complete_directories (commandline -ct))' -d 'last result'
$options -l json -d 'print JSON'
complete -c vmsnap -n __vmsnap_runs -x -a '(__vmsnap_command)'
