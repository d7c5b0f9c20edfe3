# shellcheck shell=bash
# Functions of the launchers; sourced, not run.

# Exit status of a run that was asked to stop and has saved.
# shellcheck disable=SC2034  # used by the scripts that source this
STOPPED=143
# Folder of compiled programs. It must be one that all processes see, since process 0 writes it.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/vswin_jax}

log() { echo "launch: $*" >&2; }

fail() {
  echo "error: $*" >&2
  exit 1
}

# Prints a command, quoted for bash.
quoted() {
  local argument text=""
  for argument in "$@"; do
    if [[ ! $argument =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then argument=${argument@Q}; fi
    text+=" $argument"
  done
  echo "${text:1}"
}

# Runs a command, or prints it if `dry_run` is set.
execute() { if [[ ${dry_run:-} ]]; then quoted "$@"; else "$@"; fi; }

# Prints the comment at the top of a script, without the options of SLURM.
print_help() {
  awk 'NR == 1 || /^#SBATCH/ { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "$1"
}

# read_arguments SCRIPT ARGUMENT...: sets `arguments`, those of the run, and `dry_run`.
# shellcheck disable=SC2034  # used by the script that sources this
read_arguments() {
  local script=$1 argument
  shift
  arguments=() dry_run=""
  for argument in "$@"; do
    case $argument in
      --help) print_help "$script" && exit 0 ;;
      --dry_run) dry_run=yes ;;
      *) arguments+=("$argument") ;;
    esac
  done
  ((${#arguments[@]})) || fail "give the arguments of the run, as in --config=... --workdir=..."
}

check_count() { [[ $2 =~ ^[0-9]+$ ]] || fail "$1 must be a whole number, got '$2'"; }

# Returns whether a restart is of no use, see `vswin_jax/common/cli.py`.
is_user_error() { [[ $1 == 1 || $1 == 2 ]]; }

# Waits for a child process and returns its status, also when a trap interrupts it.
wait_for() {
  while kill -0 "$1" 2>/dev/null; do sleep 0.2 || true; done
  wait "$1"
}
