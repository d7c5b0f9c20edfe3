# shellcheck shell=bash
# What the launchers share; sourced, not run.

if ((BASH_VERSINFO[0] < 5)); then
  echo "error: bash 5 or newer is needed, this is $BASH_VERSION" >&2
  exit 1
fi

say() { echo "launch: $*" >&2; }

fail() {
  echo "error: $*" >&2
  exit 1
}

# Prints a command as a shell takes it.
quoted() {
  local argument text=""
  for argument in "$@"; do
    if [[ $argument =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      text+=" $argument"
    else
      text+=" '${argument//\'/\'\\\'\'}'"
    fi
  done
  echo "${text# }"
}

# Prints the lines of the comment at the top of a script, but for the first and for what is not
# meant for people.
print_help() {
  awk 'NR == 1 || /^#SBATCH/ { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "$1"
}

# Splits the arguments of a launcher without options of its own into `arguments`, those of the run,
# and `dry_run`.
# read_arguments SCRIPT ARGUMENT...
# shellcheck disable=SC2034  # both are for the script that sources this
read_arguments() {
  local script=$1 argument
  shift
  arguments=()
  dry_run=""
  for argument in "$@"; do
    case $argument in
      --help)
        print_help "$script"
        exit 0
        ;;
      --dry_run) dry_run=yes ;;
      *) arguments+=("$argument") ;;
    esac
  done
  ((${#arguments[@]})) || fail "give the arguments of the run, as in --config=... --workdir=..."
}

check_count() { [[ $2 =~ ^[0-9]+$ ]] || fail "$1 must be a whole number, got '$2'"; }

# The folder of compiled programs of a run with these arguments: the one given, else in the workdir
# if that is a folder of a file system.
compilation_cache() {
  local previous="" argument workdir=""
  for argument in "$@"; do
    case $argument in
      --workdir=*) workdir=${argument#*=} ;;
      *) if [[ $previous == --workdir ]]; then workdir=$argument; fi ;;
    esac
    previous=$argument
  done
  if [[ ${JAX_COMPILATION_CACHE_DIR:-} ]]; then
    echo "$JAX_COMPILATION_CACHE_DIR"
  elif [[ -z $workdir || $workdir == *://* ]]; then
    echo "$HOME/.cache/vswin_jax"
  else
    echo "$workdir/compilation_cache"
  fi
}

# Statuses that say that the command itself is wrong, those of `vswin_jax/common/cli.py`: another
# start would end the same way.
is_user_error() { [[ $1 == 1 || $1 == 2 ]]; }

# The status of a run that was asked to stop and has saved: neither its end nor a fault.
# shellcheck disable=SC2034  # for the scripts that source this
STOPPED=143

# Waits for a child and returns its status. `wait` comes last: where a trap ends it just as the
# child ends, bash may lose the status, or wait for ever.
wait_for() {
  while kill -0 "$1" 2>/dev/null; do sleep 0.2 || true; done
  wait "$1"
}
