#!/usr/bin/env bash
# Runs on every worker of a slice, called by `tpu_vm.sh`:
#
#   install [BUCKET]   install Python and this clone; mount BUCKET as /mnt/BUCKET
#   run ARGUMENT...    start the run, which outlives the connection
#   status             print "running", "ended STATUS" or "not started"
#   log                print the last lines of the output, and follow it until the run ends
#   stop               make the run save and end
#   kill               end it at once
#
#   --dry_run before the command: print what `install` and `run` would run, and run nothing
#   --help                        print this
set -euo pipefail
clone=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$clone/launch/common.sh"

files="$HOME/.vswin_jax"
environment="$HOME/vswin_jax_environment"

install() {
  # The system's Python is too old; uv installs another.
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
    # A new machine updates itself first, hence the timeout.
    # shellcheck disable=SC2016  # expanded by the inner shell
    execute sudo bash -c '
      set -e
      source /etc/os-release
      curl --silent --show-error --fail https://packages.cloud.google.com/apt/doc/apt-key.gpg \
        --output /usr/share/keyrings/cloud.google.asc
      echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc]" \
        "https://packages.cloud.google.com/apt gcsfuse-$VERSION_CODENAME main" \
        >/etc/apt/sources.list.d/gcsfuse.list
      apt-get -o DPkg::Lock::Timeout=600 -qq update
      apt-get -o DPkg::Lock::Timeout=600 -qq install gcsfuse'
  fi
  execute sudo install --directory "--owner=$USER" "$folder"
  execute gcsfuse --implicit-dirs -o ro "$1" "$folder"
}

running() {
  # After a restart of the VM another process may have the number.
  [[ -f $files/process ]] && grep --quiet run_once.sh "/proc/$(<"$files/process")/cmdline" 2>/dev/null
}

run() {
  (($#)) || fail "give the arguments of the run, as in --config=... --workdir=..."
  if running; then fail "a run is going on; stop or kill it first"; fi
  local command=(
    env "PYTHON=$environment/bin/python" "STATUS_FILE=$files/status"
    nohup setsid "$clone/launch/run_once.sh" "$@"
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
  elif [[ -f $files/process ]]; then
    echo "ended $(cat "$files/status" 2>/dev/null || echo 137)"
  else
    echo "not started"
  fi
}

follow() {
  [[ -f $files/log ]] || fail "not started"
  tail --follow --sleep-interval=0.2 --lines=100 "--pid=$(<"$files/process")" "$files/log"
}

stop() {
  running || fail "nothing is running"
  kill -TERM "$(<"$files/process")"
}

# Ends the process group of the run.
end() { if [[ -f $files/process ]]; then kill -KILL -- "-$(<"$files/process")" 2>/dev/null || true; fi; }

dry_run=""
if [[ ${1:-} == --dry_run ]]; then dry_run=yes && shift; fi
case ${1:-} in
  install | run | status | stop) "$@" ;;
  log) follow ;;
  kill) end ;;
  --help) print_help "$0" ;;
  *) fail "unknown command '${1:-}'; see --help" ;;
esac
