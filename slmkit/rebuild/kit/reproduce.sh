#!/usr/bin/env bash
# @TITLE@: makes the environment it was made in, runs its recipe, and compares what comes out with what was recorded.
#
#   ./reproduce                     all of it, in this folder
#   ./reproduce NAME=PATH …         with an input that lies elsewhere now (README.md lists them)
#
#   PYTHON=…    a Python @PYTHON@
#   SLMKIT=…    a checkout of slmkit that has commit @COMMIT_SHORT@, or a wheel or URL of slmkit @SLMKIT_VERSION@
#   LEDGERS=…   a folder with the teachers' answers (ledgers/ of a store)@LEDGERS_NOTE@
#
# Exit: 0 what was recorded, 3 other bytes (it says which step and file), 4 something that is needed is not here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
PYTHON=${PYTHON:-python@PYTHON_MINOR@}
SLMKIT=${SLMKIT:-@SLMKIT@}
LEDGERS=${LEDGERS:-@LEDGERS@}
COMMIT=@COMMIT@
say() { printf 'reproduce: %s\n' "$*" >&2; }
die() { say "$1"; exit "${2:-4}"; }

command -v "$PYTHON" >/dev/null || die "there is no $PYTHON here; PYTHON=… names a Python @PYTHON@ (pyenv install @PYTHON@, uv python install @PYTHON@)"
found=$("$PYTHON" -c 'import platform; print(platform.python_version())')
[[ "${found%.*}" == "@PYTHON_MINOR@" ]] || die "$PYTHON is Python $found, and @PYTHON@ was recorded; PYTHON=… names another"
[[ "$found" == "@PYTHON@" ]] || say "note: this is Python $found, @PYTHON@ was recorded"

if [[ ! -f .venv/.made ]]; then
    say "making .venv (about 2 GB with torch)"
    rm -rf .venv slmkit-source
    "$PYTHON" -m venv .venv
    pip=(.venv/bin/python -m pip --disable-pip-version-check --no-input)
    # torch's builds differ by what stands after the `+`, and lie in an index of their own; where a wheel is at hand (find-links), that is taken
    @TORCH@
    "${pip[@]}" install --quiet --no-deps -r requirements.txt || die "the packages of requirements.txt could not all be installed; pip says why above"
    [[ -n "$SLMKIT" ]] || die "SLMKIT=… must name slmkit @SLMKIT_VERSION@: a checkout with commit @COMMIT_SHORT@, a wheel, or a URL"
    if [[ -n "$COMMIT" && -e "$SLMKIT/.git" ]]; then
        mkdir slmkit-source
        git -C "$SLMKIT" archive "$COMMIT" | tar -x -C slmkit-source || die "$SLMKIT has no commit $COMMIT"
        SLMKIT=./slmkit-source
    fi
    "${pip[@]}" install --quiet --no-deps "$SLMKIT" || die "slmkit could not be installed from $SLMKIT"
    .venv/bin/python check.py packages || die "the environment is not as recorded (above)"
    touch .venv/.made
fi

export PATH="$PWD/.venv/bin:$PATH"
unset PYTHONPATH SLMKIT_STORE
@THREADS@
.venv/bin/python check.py inputs "$@" || die "an input is not as recorded (above)"
mapfile -t sets < <(.venv/bin/python check.py sets "$@")
.venv/bin/slmkit plan recipe.yaml --store artifacts --locked --json ${sets[@]+"${sets[@]}"} >plan.json || die "the recipe cannot be planned here"
.venv/bin/python check.py asked plan.json || die "what is asked for is not what was asked then (above)"
@ANSWERS@
code=0
.venv/bin/slmkit run recipe.yaml --store artifacts --locked --json ${sets[@]+"${sets[@]}"} >made.json || code=$?
[[ $code == 0 || $code == 3 ]] || die "the recipe ended with exit code $code"   # 3: an expectation said no, as it may have done then
if .venv/bin/python check.py outputs made.json; then
    say "as recorded: @TITLE@ is reproduced"
else
    die "not what was recorded (above). With the recorded artifact at hand: slmkit verify REF --rebuild --deep says how far apart" 3
fi
