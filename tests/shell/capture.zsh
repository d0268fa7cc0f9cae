# SPDX-License-Identifier: Apache-2.0
# zsh -f capture.zsh DIRECTORY LINE: what zsh offers after LINE, with the completions of DIRECTORY.
# A zsh on a terminal of its own (zpty) is asked, since there is no completion without an editor.
zmodload zsh/zpty || exit 1
zpty shell zsh -f -i
zpty -w shell "fpath=(${(q)1} \$fpath); source ${(q)0:A:h}/inside.zsh"
zpty -r shell out '*VMSNAP-READY*' || exit 1
zpty -n -w shell "$2"$'\C-x'
zpty -r shell out '*VMSNAP-END*' || exit 1
out=${out##*VMSNAP-BEGIN}
print -r -- ${out%%VMSNAP-END*}
zpty -d shell
