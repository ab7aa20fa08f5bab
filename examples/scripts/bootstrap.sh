# Finds or makes the Python environment and installs what this repository needs into it.
#
# Sourced, never run: `source examples/scripts/bootstrap.sh; bootstrap`
# Uses the active virtual or conda environment (conda's `base` does not count); without one it
# makes `.venv` in the repository root and activates it. A stamp in the environment holds a hash
# of requirements.txt, setup.py and the repository's path, so a rerun installs nothing.
#
# PYTHON    interpreter to make `.venv` from (default: the first one that is 3.11 or newer)
# Sets      SEAL_ROOT; DS_ACCELERATOR=cpu where there is no NVIDIA device; OMP_NUM_THREADS (1);
#           TORCH_EXTENSIONS_DIR

SEAL_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"

say() { printf '[seal] %s\n' "$*"; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

# find_python: prints the first interpreter that is 3.11 or newer.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python python3.11 python3.12 python3.13}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "no Python 3.11 or newer among '${PYTHON:-python3 python python3.11 ...}';" \
        "install one, or name it: PYTHON=/path/to/python bash ${0##*/}"
}

# activate_environment: after it, `python` is the one to install into.
activate_environment() {
    if [[ -n "${VIRTUAL_ENV:-}" && -x "$VIRTUAL_ENV/bin/python" ]]; then
        export PATH="$VIRTUAL_ENV/bin:$PATH"
        return
    fi
    if [[ -n "${CONDA_PREFIX:-}" && "${CONDA_DEFAULT_ENV:-}" != base ]]; then
        export PATH="$CONDA_PREFIX/bin:$PATH"
        return
    fi
    local venv="$SEAL_ROOT/.venv"
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        local python
        python="$(find_python)"
        say "making $venv with $("$python" --version)"
        "$python" -m venv --clear "$venv" ||
            die "'$python -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv"
    fi
    # shellcheck disable=SC1091
    source "$venv/bin/activate"
}

# install_once: pip runs only when the stamp in the environment differs.
install_once() {
    local prefix stamp wanted log started=$SECONDS
    prefix="$(python -c 'import sys
if sys.version_info < (3, 11):
    sys.exit(f"error: Python 3.11 or newer is needed, {sys.executable} is {sys.version.split()[0]}")
print(sys.prefix)')" || exit 2
    stamp="$prefix/.seal-installed"
    wanted="$( (echo "$SEAL_ROOT" && cat "$SEAL_ROOT/requirements.txt" "$SEAL_ROOT/setup.py") | cksum)"
    if [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]]; then
        return
    fi
    log="$prefix/seal-install.log"
    say "installing requirements.txt into $prefix (two to ten minutes the first time)"
    run_pip "$log" install -r "$SEAL_ROOT/requirements.txt"
    say "installing seal from $SEAL_ROOT"
    run_pip "$log" install --no-deps -e "$SEAL_ROOT"
    printf '%s' "$wanted" >"$stamp"
    say "installed in $((SECONDS - started)) s"
}

# watched LOG COMMAND...: runs COMMAND, its output in LOG, whose last line is said every SILENCE seconds.
SILENCE=10
watched() {
    local log="$1" status=0 beat
    shift
    : >"$log"
    while sleep "$SILENCE" >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
        say "  $(tail -c 1000 "$log" | tr '\r' '\n' | grep . | tail -n 1 | cut -c 1-120)"
    done &
    beat=$!
    "$@" >"$log" 2>&1 || status=$?
    kill "$beat"
    wait "$beat" 2>/dev/null || true
    return "$status"
}

# run_pip LOG ARGS...: pip without its chatter; on failure the end of what it said.
run_pip() {
    local log="$1"
    shift
    if ! watched "$log" python -m pip --no-input --disable-pip-version-check "$@"; then
        tail -n 25 "$log" >&2
        die "pip failed; all it said is in $log"
    fi
}

bootstrap() {
    activate_environment
    install_once
    if [[ -z "${DS_ACCELERATOR:-}" ]] && ! nvidia-smi -L >/dev/null 2>&1; then
        export DS_ACCELERATOR=cpu
    fi
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    # DeepSpeed's compiled operators belong to one environment: shared, two would rebuild them in turn
    export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$(python -c 'import sys; print(sys.prefix)')/torch_extensions}"
}
