#!/usr/bin/env bash
# Trains on a slice of Cloud TPU VMs, through queued resources:
#
#   launch/tpu_vm.sh all --name=k400 --zone=us-west4-a --spot --bucket=my-data -- \
#     --config=configs/k400_swin_t.py --workdir=gs://my-runs/k400
#
# Commands:
#   create    request the slice
#   wait      wait until it is active
#   status    print the state of the slice and of the run
#   copy      copy the last commit of this clone to all workers
#   install   install it there, and mount the bucket
#   run       start the run on all workers; it outlives the connection
#   log       follow the output of worker 0
#   stop      make the run save and end
#   kill      end it at once
#   delete    delete the slice; checkpoints in gs:// are kept
#   all       create, wait, copy, install, run, log and delete. A run that fails is restarted, a
#             slice that is preempted is created again, and the run resumes. If this command is
#             interrupted, the run goes on; start it again to follow the run.
#
# Options:
#   --name=NAME        of the slice (vswin-jax)
#   --zone=ZONE        of Google Cloud
#   --project=PROJECT  of Google Cloud (that of gcloud)
#   --type=TYPE        v5litepod-64 (the default), v6e-64, v4-128 ...
#   --runtime=VERSION  software version of the VMs (v2-alpha-tpuv5-lite)
#   --slices=N         number of slices of one run (1)
#   --spot             cheaper, and may be preempted
#   --bucket=NAME      mounted on every worker as /mnt/NAME, read-only
#   --cache=FOLDER     of compiled programs (~/.cache/vswin_jax on each worker); gs://... keeps them
#   --restarts=N       of `all`: maximum number of restarts of the run on a slice (3)
#   --recreations=N    of `all`: maximum number of times that a lost slice is created again (20)
#   --poll=SECONDS     between two looks at the slice, and between tries of a failed command (30)
#   --dry_run          print the commands and run nothing
#   --help             print this
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

name=vswin-jax zone="" project="" type=v5litepod-64 runtime=v2-alpha-tpuv5-lite slices=1 spot=""
bucket="" cache="" restarts=3 recreations=20 poll=30 dry_run="" command="" arguments=()
if [[ ${1:-} != -* ]]; then command=${1:-} && shift $(($# > 0)); fi
while (($#)); do
  case $1 in
    --spot | --dry_run) printf -v "${1#--}" yes ;;
    --name=* | --zone=* | --project=* | --type=* | --runtime=* | --slices=* | --bucket=* | \
      --cache=* | --restarts=* | --recreations=* | --poll=*)
      option=${1%%=*}
      printf -v "${option#--}" %s "${1#*=}"
      ;;
    --help) print_help "$0" && exit 0 ;;
    --) shift && arguments=("$@") && break ;;
    *) fail "unknown option '$1'; arguments of the run come after --; see --help" ;;
  esac
  shift
done
[[ $command ]] || fail "which command? see --help"
[[ $zone ]] || fail "give --zone, as in --zone=us-west4-a"
for option in slices restarts recreations poll; do check_count "--$option" "${!option}"; done
((slices)) || fail "--slices must be at least 1, got 0"
if [[ $command == run || $command == all ]] && ((${#arguments[@]} == 0)); then
  fail "give the arguments of the run after --, as in -- --config=... --workdir=gs://..."
fi

nodes=("$name")
if ((slices > 1)); then mapfile -t nodes < <(seq --format="$name-%.0f" 0 $((slices - 1))); fi
location=("--zone=$zone" ${project:+"--project=$project"})
worker=vswin_jax/launch/tpu_vm_worker.sh

queued_resources() { execute gcloud compute tpus queued-resources "$@" "${location[@]}"; }

# on_node NODE WORKERS COMMAND...
on_node() {
  # A lost connection ends after two minutes.
  execute gcloud compute tpus tpu-vm ssh "$1" "--worker=$2" "--command=$(quoted "${@:3}")" \
    "--ssh-flag=-o ServerAliveInterval=30" "--ssh-flag=-o ServerAliveCountMax=4" "${location[@]}"
}
on_first() { on_node "${nodes[0]}" 0 "$@"; }
on_all() {
  local node failed=0
  for node in "${nodes[@]}"; do on_node "$node" all "$@" || failed=1; done
  return "$failed"
}

create() {
  local one_or_more=("--node-id=$name")
  if ((slices > 1)); then one_or_more=("--node-count=$slices" "--node-prefix=$name"); fi
  queued_resources create "$name" "${one_or_more[@]}" "--accelerator-type=$type" \
    "--runtime-version=$runtime" ${spot:+--spot}
}
describe() { queued_resources describe "$name" '--format=value(state.state)'; }
delete() { queued_resources delete "$name" --force --quiet; }

copy() {
  local archive="${TMPDIR:-/tmp}/$name.tar.gz" node
  execute git -C "$(dirname "$0")/.." archive --format=tar.gz "--output=$archive" HEAD || return
  for node in "${nodes[@]}"; do
    execute gcloud compute tpus tpu-vm scp "$archive" "$node:vswin_jax.tar.gz" --worker=all \
      "${location[@]}" || return
  done
  on_all bash -c 'rm -rf vswin_jax && mkdir vswin_jax && tar -xzf vswin_jax.tar.gz -C vswin_jax'
}
install() { on_all "$worker" install ${bucket:+"$bucket"}; }
start() {
  on_all ${cache:+env "JAX_COMPILATION_CACHE_DIR=$cache"} "$worker" run "${arguments[@]}"
}
# These two also work before anything was copied.
run_status() {
  on_first bash -c "if [[ -x $worker ]]; then $worker status; else echo not started; fi"
}
kill_run() { on_all bash -c "if [[ -x $worker ]]; then $worker kill; fi"; }

give_up() {
  log "$1; the slice is kept and costs money until it is deleted:" \
    "$(quoted "$0" delete "--name=$name" "${location[@]}")"
  exit "${2:-1}"
}

tries=5
# retry COMMAND...: tries a command a few times; fails at once if the slice is lost.
retry() {
  local try
  for ((try = 1; try <= tries; try++)); do
    if "$@"; then return; fi
    read_state
    if [[ $state != ACTIVE ]]; then return 1; fi
    log "$1 failed (try $try of $tries)"
    sleep "$poll"
  done
  give_up "$1 failed $tries times"
}

# Sets `state`, that of the slice: empty if there is none. Ends this program if gcloud can't tell: a
# slice that exists must not be created again.
read_state() {
  local try errors
  errors=$(mktemp)
  for ((try = 1; try <= tries; try++)); do
    if state=$(describe 2>"$errors"); then break; fi
    state=""
    if grep --quiet NOT_FOUND "$errors"; then break; fi
    log "the state of $name is unknown (try $try of $tries): $(<"$errors")"
    sleep "$poll"
  done
  rm -f "$errors"
  if ((try > tries)); then give_up "the state of the slice is unknown"; fi
}

wait_until_active() {
  local previous=""
  while read_state && [[ $state != ACTIVE ]]; do
    if [[ $state != "$previous" ]]; then log "$name is ${state:-not there}"; fi
    previous=$state
    case $state in "" | FAILED | SUSPENDED) return 1 ;; esac
    sleep "$poll"
  done
}

# Sets `run`: "running", "ended STATUS", "not started", or empty if worker 0 can't be reached.
read_run() { run=$(run_status 2>/dev/null) || run=""; }
reach_run() { read_run && [[ $run ]]; }

# Creates the slice; after an error it may exist all the same.
create_slice() {
  local try
  for ((try = 1; try <= tries; try++)); do
    if create; then return; fi
    read_state
    if [[ $state ]]; then return; fi
    log "create failed (try $try of $tries)"
    sleep "$poll"
  done
  fail "the slice can't be created"
}

# Processes on a part of the workers would be in the way of the next start.
start_on_all() { start || { kill_run && false; }; }

# Sees to it that there is a slice and a run on it; fails if the slice is lost meanwhile.
bring_up() {
  read_state
  if [[ $state == FAILED || $state == SUSPEND* ]]; then delete && state="" || return; fi
  if [[ -z $state ]]; then create_slice; fi
  wait_until_active && retry reach_run || return
  if [[ $run == running ]]; then return; fi
  retry kill_run && retry copy && retry install && retry start_on_all
}

# Follows the run until it ends; sets `run`, empty if its slice is lost.
follow() {
  local patience=10
  run=running
  while :; do
    if [[ $run == running ]]; then on_first "$worker" log || true; fi
    read_run
    if [[ $run == "ended 0" ]] || is_user_error "${run#ended }"; then return; fi
    read_state
    if [[ $state != ACTIVE ]]; then
      log "$name is ${state:-gone}"
      run=""
      return
    fi
    case $run in
      running) patience=10 ;;
      # On preemption the run is stopped, and its host disappears, before the state changes.
      "" | "ended $STOPPED")
        if ((--patience < 0)); then
          if [[ -z $run ]]; then give_up "worker 0 can't be reached"; fi
          return
        fi
        ;;
      *) return ;;
    esac
    sleep "$poll"
  done
}

all() {
  local failures=0 losses=0
  while :; do
    if bring_up; then follow; else run=""; fi
    case $run in
      "")
        if ((losses++ == recreations)); then give_up "the slice was lost $losses times"; fi
        failures=0
        log "creating the slice again ($losses of $recreations)"
        delete || true
        sleep "$poll"
        ;;
      "ended 0")
        delete || give_up "the run has ended, but the slice can't be deleted"
        return
        ;;
      "ended 1" | "ended 2" | "ended $STOPPED") give_up "the run $run" "${run#ended }" ;;
      *)
        log "the run: $run"
        if ((failures++ == restarts)); then
          give_up "the run failed $failures times" "${run//[^0-9]/}"
        fi
        ;;
    esac
  done
}

case $command in
  all)
    if [[ $dry_run ]]; then
      create && describe && copy && install && start && on_first "$worker" log && delete
    else
      all
    fi
    ;;
  create | copy | install | delete) "$command" ;;
  wait) if [[ $dry_run ]]; then describe; else wait_until_active; fi ;;
  status) describe && run_status ;;
  run) start ;;
  log | stop) on_first "$worker" "$command" ;;
  kill) kill_run ;;
  *) fail "unknown command '$command'; see --help" ;;
esac
