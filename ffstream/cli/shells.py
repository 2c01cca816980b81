"""Completion in shells: click's mechanism, with scripts that also complete `--set SECTION.KEY=VALUE` in parts.

A script calls `ffstream` at each TAB with the line so far in the environment; `ffstream` prints a line for each
completion, `TYPE,VALUE` for bash. The type `part` is ours: no space follows, because the word goes on. fish needs
no type for that: it adds no space after `.` and `=`.
"""

import os
from typing import ClassVar

from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    split_arg_string,
)

_BASH = """\
%(complete_func)s() {
    local type value response
    COMPREPLY=()
    response=$(COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_BREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1") || return
    while IFS=',' read -r type value; do
        case $type in
        dir) compopt -o dirnames ;;
        file) compopt -o default ;;
        part) compopt -o nospace && COMPREPLY+=("$value") ;;
        plain) COMPREPLY+=("$value") ;;
        esac
    done <<<"$response"
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

_ZSH = """\
#compdef %(prog_name)s

%(complete_func)s() {
    local -a names described parts response
    local type key descr
    (( ! $+commands[%(prog_name)s] )) && return 1
    response=("${(@f)$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) %(complete_var)s=zsh_complete \\
        %(prog_name)s)}")
    for type key descr in ${response}; do
        case $type in
        dir) _path_files -/ ;;
        file) _path_files -f ;;
        part) parts+=("$key") ;;
        plain) if [[ "$descr" == "_" ]]; then names+=("$key"); else described+=("$key:$descr"); fi ;;
        esac
    done
    [[ -n "$described" ]] && _describe -V unsorted described -U
    [[ -n "$names" ]] && compadd -U -V unsorted -a names
    [[ -n "$parts" ]] && compadd -U -V unsorted -S '' -a parts
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""


def _is_part(item: CompletionItem) -> bool:
    return item.type == "plain" and item.value.endswith((".", "="))


class Bash(BashComplete):
    """bash takes `=` and `:` as ends of words, so it gets only what follows the last of them in its word."""

    source_template: ClassVar[str] = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor, and the one at the cursor."""
        line = os.environ["COMP_LINE"]
        words = split_arg_string(line)
        last = words.pop() if words and not line[-1:].isspace() else ""
        breaks = [last.rfind(each) for each in os.environ.get("COMP_BREAKS", "") if each in "=:"]
        self._before = last[: max(breaks, default=-1) + 1]
        return words[1:], last

    def format_completion(self, item: CompletionItem) -> str:
        """One line for the script."""
        given = (self._before[at:] for at in range(len(self._before)))
        before = next((each for each in given if item.value.startswith(each)), "")
        return f"{'part' if _is_part(item) else item.type},{item.value.removeprefix(before)}"


class Zsh(ZshComplete):
    """zsh gets whole words."""

    source_template: ClassVar[str] = _ZSH

    def format_completion(self, item: CompletionItem) -> str:
        """Three lines for the script."""
        return f"part\n{item.value}\n_" if _is_part(item) else super().format_completion(item)


SHELLS: dict[str, type[ShellComplete]] = {"bash": Bash, "zsh": Zsh, "fish": FishComplete}
for _name, _shell in SHELLS.items():
    add_completion_class(_shell, _name)
