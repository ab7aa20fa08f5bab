# What every training script shares. Sourced, never run: `source launch.sh; launch SCRIPT ARGS...`
#
# SEAL_LAUNCHER    what starts the ranks on this machine (default: deepspeed), for example
#                  "torchrun --nproc_per_node 8" or "srun python"
# DEEPSPEED_ARGS   more flags of that launcher (deepspeed takes every GPU by itself), for example
#                  "--num_gpus 4", or "--hostfile hosts" for several machines
# SEAL_DATA        the folder that holds BlueOrca, RedOrca and SafeInstr (default: data/ in the
#                  repository; examples/build_redorca.py fills it)

SEAL_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
SEAL_DATA="${SEAL_DATA:-$SEAL_ROOT/data}"

# launch SCRIPT ARGS...: runs examples/SCRIPT on every rank.
launch() {
    local script="$SEAL_ROOT/examples/$1"
    shift
    if [[ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" && -f "$SEAL_ROOT/.venv/bin/activate" ]]; then
        # shellcheck disable=SC1091
        source "$SEAL_ROOT/.venv/bin/activate"
    fi
    local launcher
    read -r -a launcher <<<"${SEAL_LAUNCHER:-deepspeed --log_level critical} ${DEEPSPEED_ARGS:-}"
    if ! command -v "${launcher[0]}" >/dev/null; then
        echo "error: '${launcher[0]}' is not on PATH; activate the environment that holds seal," \
            "or run: bash $SEAL_ROOT/examples/scripts/quickstart.sh" >&2
        return 2
    fi
    if [[ "${launcher[0]}" == deepspeed && "${launcher[*]}" != *--master_port* ]]; then
        launcher+=(--master_port "$(free_port)")
    fi
    trap '' USR1 # a launcher knows nothing of SLURM's warning, which is meant for the ranks
    "${launcher[@]}" "$script" "$@"
}

# free_port: prints one, so that two runs on a machine do not meet at deepspeed's 29500.
free_port() {
    python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}
