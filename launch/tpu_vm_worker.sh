#!/usr/bin/env bash
# What `tpu_vm.sh` runs on every worker of a slice:
#
#   install [BUCKET]   Python, this clone, the TPU's libraries; BUCKET mounted as /mnt/BUCKET
#   run ARGUMENT...    start the run, which outlives the connection
#   status             print "running", "ended STATUS" or "not started"
#   log [LINE]         print the output until the run ends, from this line on (1); below 0: the last
#                      lines
#   stop               make the run save and end
#   kill               end it at once
#   --help             print this
#
#   --dry_run before the command: print what `install` and `run` would run, and run nothing
set -euo pipefail
clone=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$clone/launch/common.sh"

files="$HOME/.vswin_jax"
environment="$HOME/vswin_jax_environment"
dry_run=""
execute() { if [[ $dry_run ]]; then quoted "$@"; else "$@"; fi; }

install() {
  # The Python of the system is too old; uv brings its own.
  execute python3 -m pip install --quiet --user uv
  execute python3 -m uv venv --quiet --allow-existing --python=3.12 "$environment"
  execute python3 -m uv pip install --quiet "--python=$environment/bin/python" \
    --editable "${clone}[tpu,gcs]"
  if [[ ${1:-} ]]; then mount_bucket "$1"; fi
}

mount_bucket() {
  local folder="/mnt/$1"
  if mountpoint --quiet "$folder"; then return; fi
  if ! command -v gcsfuse >/dev/null; then
    # shellcheck disable=SC2016  # expanded by the inner shell
    execute sudo bash -c '
      set -e
      source /etc/os-release
      curl --silent --show-error --fail https://packages.cloud.google.com/apt/doc/apt-key.gpg \
        --output /usr/share/keyrings/cloud.google.asc
      echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc]" \
        "https://packages.cloud.google.com/apt gcsfuse-$VERSION_CODENAME main" \
        >/etc/apt/sources.list.d/gcsfuse.list
      # The system of a new machine updates itself at first.
      apt-get -o DPkg::Lock::Timeout=600 -qq update
      apt-get -o DPkg::Lock::Timeout=600 -qq install gcsfuse'
  fi
  execute sudo install --directory "--owner=$USER" "$folder"
  execute gcsfuse --implicit-dirs -o ro "$1" "$folder"
}

running() {
  # After a restart of the VM the number may be that of another process.
  [[ -f $files/process ]] && grep --quiet run_once.sh "/proc/$(<"$files/process")/cmdline" 2>/dev/null
}

run() {
  local cache
  (($#)) || fail "give the arguments of the run, as in --config=... --workdir=..."
  if running; then fail "a run is going on; stop or kill it first"; fi
  cache=$(compilation_cache "$@")
  local command=(
    env "JAX_COMPILATION_CACHE_DIR=$cache" "PYTHON=$environment/bin/python"
    "STATUS_FILE=$files/status" nohup setsid "$clone/launch/run_once.sh" "$@"
  )
  if [[ $dry_run ]]; then
    quoted "${command[@]}"
    return
  fi
  mkdir -p "$files"
  rm -f "$files/status"
  cd "$clone"
  "${command[@]}" >"$files/log" 2>&1 </dev/null &
  echo $! >"$files/process"
}

status() {
  if running; then
    echo running
  elif [[ -f $files/status ]]; then
    echo "ended $(<"$files/status")"
  elif [[ -f $files/process ]]; then
    echo "ended 137"
  else
    echo "not started"
  fi
}

log() {
  [[ -f $files/log ]] || fail "not started"
  local line=${1:-1}
  if ((line > 0)); then line=+$line; fi
  tail --follow --sleep-interval=0.2 "--lines=$line" "--pid=$(<"$files/process")" "$files/log"
}

stop() {
  running || fail "nothing is running"
  kill -TERM "$(<"$files/process")"
}

# The run and the processes that it started are a group of their own.
end() { if [[ -f $files/process ]]; then kill -KILL -- "-$(<"$files/process")" 2>/dev/null || true; fi; }

if [[ ${1:-} == --dry_run ]]; then dry_run=yes && shift; fi
case ${1:-} in
  install | run | status | log | stop) "$@" ;;
  kill) end ;;
  --help) print_help "$0" ;;
  *) fail "unknown command '${1:-}'; see --help" ;;
esac
