"""`pegasus-lightning completion bash|zsh`: a script for tab completion of commands, presets, settings and paths.

The script holds every word, so that a press of the key starts no Python.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from omegaconf import DictConfig, OmegaConf

from pegasus_lightning.launch.help import COMMAND_NAMES
from pegasus_lightning.utils.compose import Program, presets
from pegasus_lightning.utils.errors import complain
from pegasus_lightning.utils.program import answered

HELP = """Print a script for tab completion of `pegasus-lightning`.

  pegasus-lightning completion bash > ~/.local/share/bash-completion/completions/pegasus-lightning
  pegasus-lightning completion zsh > ~/.pegasus-lightning.zsh      and in ~/.zshrc, after compinit: source that file
"""
SHELLS = ("bash", "zsh")
PATHS = "run|export|images|ratings|key|out|first|second|recognisers|data.root|data.cache|runs_dir|init_from"
OPTIONS = {
    "report": ("--out", "--baseline", "--no-originals", "--help"),
    "export": ("--out", "--onnx", "--help"),
    "runs": ("list", "best", "show", "compare", "csv", "--help"),
    "completion": SHELLS,
}

BASH = """_pegasus_lightning() {
    local line="${COMP_LINE:0:COMP_POINT}" list found=() word key head path
    word="${line##*[[:space:]]}"
    case "${COMP_WORDS[1]}" in
CASES
    esac
    (( COMP_CWORD == 1 )) && list="COMMANDS $list"
    key="${word%%=*}="
    if [[ "$word" =~ ^(PATHS)= ]]; then
        while IFS= read -r path; do found+=("$key$path"); done < <(compgen -f -- "${word#*=}")
        compopt -o filenames 2>/dev/null
    elif [[ "$word" == *=*,* ]]; then
        head="${word%,*},"
        while IFS= read -r path; do found+=("$head${path#"$key"}"); done < <(compgen -W "$list" -- "$key${word##*,}")
    else
        while IFS= read -r path; do found+=("$path"); done < <(compgen -W "$list" -- "$word")
        [[ "${#found[@]}" == 0 ]] && while IFS= read -r path; do found+=("$path"); done < <(compgen -f -- "$word")
        [[ -e "${found[0]}" ]] && compopt -o filenames 2>/dev/null
    fi
    [[ "${#found[@]}" == 1 && "${found[0]}" == *= ]] && compopt -o nospace 2>/dev/null
    head=""
    [[ "$COMP_WORDBREAKS" == *=* ]] && head="${word%"${word##*=}"}"
    COMPREPLY=("${found[@]#"$head"}")
}
complete -F _pegasus_lightning pegasus-lightning
"""

ZSH = """_pegasus_lightning() {
    local -a list found
    local key="${PREFIX%%=*}"
    case "${words[2]}" in
CASES
    esac
    (( CURRENT == 2 )) && list=(COMMANDS $list)
    if [[ "$PREFIX" == (PATHS)=* ]]; then
        compset -P "${key}="
        _files
    elif [[ "$PREFIX" == *=*,* ]]; then
        compset -P '*,'
        found=(${(M)list:#${key}=*})
        compadd -- ${found#${key}=}
    else
        found=(${(M)list:#${(b)PREFIX}*})
        (( $#found )) || { _files; return }
        compadd -S '' -- ${(M)found:#*=}
        compadd -- ${found:#*=}
    fi
}
compdef _pegasus_lightning pegasus-lightning
"""


def words(program: Program, variants: Sequence[str] = ()) -> list[str]:
    """Return what can be typed after a command: `group=preset`, `field=`, and both values of switches.

    `variants` are the groups whose presets have fields of their own.
    """
    found = {f"{group}={name}": None for group in program.groups for name in presets(group)}
    for choice in [[], *([f"{group}={name}"] for group in variants for name in presets(group))]:
        found |= dict.fromkeys(_fields(program.compose(choice)))
    return sorted(found)


def _fields(config: DictConfig, prefix: str = "") -> Iterable[str]:
    for key in map(str, config):
        value = None if OmegaConf.is_missing(config, key) else config[key]
        if isinstance(value, DictConfig):
            yield from _fields(value, f"{prefix}{key}.")
        elif isinstance(value, bool):
            yield from (f"{prefix}{key}=true", f"{prefix}{key}=false")
        else:
            yield f"{prefix}{key}="


def script(shell: str) -> str:
    """Return the script for "bash" or "zsh"."""
    from pegasus_lightning.demo.settings import DEMO  # PyTorch is slow to import
    from pegasus_lightning.evaluate.settings import EVALUATE
    from pegasus_lightning.generate.settings import GENERATE
    from pegasus_lightning.panel.settings import MAKE, SCORE
    from pegasus_lightning.train.settings import TRAIN

    data = [word for word in words(TRAIN, ("data",)) if word.startswith(("data=", "data."))]
    programs = {"generate": GENERATE, "evaluate": EVALUATE, "demo": DEMO}
    lists = {name: [*words(program), *data] for name, program in programs.items()}
    lists |= {"panel": ["make", "score", *words(MAKE), *words(SCORE), *data]} | {k: [*v] for k, v in OPTIONS.items()}
    lists["*"] = [*words(TRAIN, ("model", "data")), "-m", "--cfg", "--config-dir=", "--help"]
    form, listed = (BASH, 'list="{}"') if shell == "bash" else (ZSH, "list=({})")
    cases = "\n".join(f"        {name}) {listed.format(' '.join(found))} ;;" for name, found in lists.items())
    return form.replace("CASES", cases).replace("COMMANDS", " ".join(COMMAND_NAMES)).replace("PATHS", PATHS)


def main() -> int:
    """Run the command line and return the exit code."""
    arguments = sys.argv[1:]
    if answered(arguments, lambda: HELP):
        return 0
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        return complain(f"Completion for which shell? Type `pegasus-lightning completion {'` or `... '.join(SHELLS)}`.")
    print(script(arguments[0]), end="")
    return 0
