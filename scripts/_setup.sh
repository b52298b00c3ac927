# Sourced by scripts/quickstart and scripts/test: `set_up core|dev` leaves a .venv in the project that holds the pinned packages.
#
# A stamp in the .venv is a copy of what decided the set-up (pyproject.toml, constraints.txt, the version, the project's place),
# so a call that finds it unchanged does nothing. The lock file is held while installing and is not empty exactly then: one
# that is found filled and unlocked tells of an interrupted set-up, whose .venv cannot be trusted and is made anew.
# Everything it says goes to stderr; stdout belongs to the command that follows.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
VENV="$ROOT/.venv"
LOCK="$ROOT/.venv.lock"
LOG="$ROOT/.venv/.slmkit-setup.log"

# Many containers set PYTHONDONTWRITEBYTECODE, and every process then compiles anew what it imports: 10 of the 16 CPU-seconds in which a
# training starts. Here bytecode is kept, in the .venv and nowhere else.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX="$VENV/.pycache"

say() { printf 'set-up: %s\n' "$*" >&2; }
die() { printf 'set-up: error: %s\n  help: %s\n' "$1" "$2" >&2; exit 4; }

wanted() { printf '%s\n' "$ROOT"; cat "$ROOT/pyproject.toml" "$ROOT/constraints.txt" "$ROOT/slmkit/__init__.py"; }
stamped() { # stamped core|dev: a dev set-up holds the core too
    local stamp want
    want="$(wanted)"
    for stamp in "$VENV/.slmkit-dev" "$VENV/.slmkit-$1"; do
        [[ -x "$VENV/bin/python" && -f "$stamp" && "$(<"$stamp")" == "$want" ]] && return 0
    done
    return 1
}

good_python() { "$1" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
find_links() { # folders and addresses where wheels are at hand, one a line; a folder that does not exist is left out
    local link
    for link in ${PIP_FIND_LINKS:-$("$1" -m pip config get global.find-links 2>/dev/null || true)}; do
        [[ "$link" == *://* || -d "$link" ]] && printf '%s\n' "$link"
    done
    return 0
}

# The Python to build on: $SLMKIT_PYTHON, else one that a torch wheel at hand is made for, else the newest known to work.
choose_python() {
    local names=(python3.13 python3.12 python3.11 python3) name link tag
    if [[ -n "${SLMKIT_PYTHON:-}" ]]; then
        good_python "$SLMKIT_PYTHON" || die "SLMKIT_PYTHON=$SLMKIT_PYTHON is no Python 3.11 or newer" "set it to one, or unset it"
        PYTHON="$SLMKIT_PYTHON"; return
    fi
    local found=()
    for name in "${names[@]}"; do good_python "$name" && found+=("$name"); done
    [[ ${#found[@]} -gt 0 ]] || die "no Python 3.11 or newer found (looked for ${names[*]})" \
        "install one (with its venv module), or set SLMKIT_PYTHON=/path/to/python"
    PYTHON="${found[0]}"
    for name in "${found[@]}"; do
        tag="$("$name" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')"
        while read -r link; do
            if compgen -G "$link/torch-*-$tag-*.whl" >/dev/null; then PYTHON="$name"; return; fi
        done < <(find_links "$name")
    done
}

make_venv() {
    if [[ -s "$LOCK" ]]; then
        say "the last set-up was interrupted; making .venv anew"
        rm -rf "$VENV"
    fi
    [[ -x "$VENV/bin/python" ]] && good_python "$VENV/bin/python" && return
    say "making .venv with $("$PYTHON" -V 2>&1)"
    echo installing >"$LOCK"
    rm -rf "$VENV"
    if [[ -n "$UV" ]]; then
        "$UV" venv --quiet --no-project --python "$("$PYTHON" -c 'import sys; print(sys.executable)')" "$VENV" \
            || die "uv could not make $VENV" "see uv's message above"
    else
        "$PYTHON" -m venv "$VENV" || die "$PYTHON could not make a virtual environment" \
            "install its venv module (Debian and Ubuntu: apt install python3-venv), or set SLMKIT_PYTHON"
    fi
}

# install WHAT ARGUMENTS…: a line at the start, one at the end, the installer's own log if it fails. Nothing is compiled to
# bytecode ahead: that would take a minute and 300 MB, and the modules that are used cost 10 s at their first import.
install() {
    local what="$1" started=$SECONDS links last; shift
    say "installing $what …"
    if [[ -n "$UV" ]]; then
        links="$(find_links "$PYTHON" | paste -sd, -)"
        set -- env ${links:+"UV_FIND_LINKS=${UV_FIND_LINKS:-$links}"} "$UV" pip install --python "$VENV/bin/python" "$@"
    else
        "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || "$VENV/bin/python" -m ensurepip >>"$LOG" 2>&1
        set -- "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input --no-compile "$@"
    fi
    echo "\$ $*" >>"$LOG"
    if ! "$@" >>"$LOG" 2>&1 9>&-; then
        last="$(sed -n "$(grep -n '^\$ ' "$LOG" | tail -1 | cut -d: -f1),\$p" "$LOG")"
        printf '%s\n' "$last" >&2
        # pip touches the .venv only after it has everything: until then it is as good as before
        [[ -z "$UV" && "$last" != *"Installing collected packages"* ]] && : >"$LOCK"
        die "installing $what failed; the installer's words are above" \
            "check the network and the free disk (and, for a conflict, constraints.txt against pyproject.toml), then call this again"
    fi
    say "installed $what in $((SECONDS - started)) s"
}

set_up() {
    local level="$1" target="$ROOT" started=$SECONDS tool
    stamped "$level" && return 0
    UV="$(command -v uv || true)"
    choose_python
    exec 9<>"$LOCK"
    if ! "$PYTHON" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null; then
        say "another set-up is under way here; waiting for it"
        "$PYTHON" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
    fi
    if ! stamped "$level"; then
        [[ -n "$UV" ]] && tool="uv" || tool="pip"
        say "once, with $tool; about 2 GB with torch's CPU build, more with CUDA; log: .venv/.slmkit-setup.log"
        make_venv
        echo installing >"$LOCK"
        rm -f "$VENV/.slmkit-core" "$VENV/.slmkit-dev"
        [[ "$level" == dev ]] && target="$ROOT[dev]"
        install "torch" --constraint "$ROOT/constraints.txt" torch
        install "slmkit and its packages" --constraint "$ROOT/constraints.txt" --editable "$target"
        wanted >"$VENV/.slmkit-$level"
        : >"$LOCK"
        say "done in $((SECONDS - started)) s; .venv holds $(du -sh "$VENV" | cut -f1)"
    fi
    exec 9>&-
}
