#!/usr/bin/env bash
# Trains on a slice of Cloud TPU VMs, through queued resources:
#
#   launch/tpu_vm.sh all --name=k400 --zone=us-west4-a --spot --bucket=my-data -- \
#     --config=configs/k400_swin_t.py --workdir=gs://my-runs/k400
#
# Commands:
#   create    ask for the slice
#   wait      wait until it is there
#   status    say what the slice and the run are doing
#   copy      copy the last commit of this clone to all workers
#   install   install it there, and mount the bucket
#   run       start the run on all workers; it goes on when the connection is lost
#   log       follow its output on worker 0
#   stop      make it save and end
#   kill      end it at once
#   delete    delete the slice; checkpoints in gs:// stay
#   all       all of it: create, wait, copy, install, run, log, delete. A run that fails is started
#             again, a slice that was preempted is created again, and the run resumes. Stopped
#             itself, the same command goes on where it was.
#
# Options:
#   --name=NAME        of the slice (vswin-jax)
#   --zone=ZONE        where
#   --project=PROJECT  the one that gcloud is set to
#   --type=TYPE        v5litepod-64 (the default), v6e-64, v4-128 ...
#   --runtime=VERSION  of the system of the VMs (v2-alpha-tpuv5-lite)
#   --slices=N         several slices as one (1)
#   --spot             cheaper, and preempted at any time
#   --bucket=NAME      mounted on every worker, to read, as /mnt/NAME
#   --cache=FOLDER     of compiled programs (~/.cache/vswin_jax on each worker); gs://... keeps them
#   --restarts=N       of `all`: how many times a run is started again on a slice (3)
#   --recreations=N    of `all`: how many times a slice is created again (20)
#   --poll=SECONDS     between looks at the slice, and between tries of what failed (30)
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
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --spot) spot=yes ;;
    --bucket=*) bucket=${1#*=} ;;
    --cache=*) cache=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --recreations=*) recreations=${1#*=} ;;
    --poll=*) poll=${1#*=} ;;
    --dry_run) dry_run=yes ;;
    --help) print_help "$0" && exit 0 ;;
    --)
      shift
      arguments=("$@")
      break
      ;;
    *) fail "unknown option '$1'; arguments of the run come after --; see --help" ;;
  esac
  shift
done
case $command in
  create | wait | status | copy | install | run | log | stop | kill | delete | all) ;;
  "") fail "which command? see --help" ;;
  *) fail "unknown command '$command'; see --help" ;;
esac
[[ $zone ]] || fail "give --zone, as in --zone=us-west4-a"
check_count --slices "$slices"
((slices)) || fail "--slices must be at least 1, got 0"
check_count --restarts "$restarts"
check_count --recreations "$recreations"
check_count --poll "$poll"
if [[ $command == run || $command == all ]] && ((${#arguments[@]} == 0)); then
  fail "give the arguments of the run after --, as in -- --config=... --workdir=gs://..."
fi

execute() { if [[ $dry_run ]]; then quoted "$@"; else "$@"; fi; }

tpus() { execute gcloud compute tpus "$@" "--zone=$zone" ${project:+"--project=$project"}; }

# The names of the slices.
nodes() {
  local slice
  if ((slices == 1)); then
    echo "$name"
  else
    for ((slice = 0; slice < slices; slice++)); do echo "$name-$slice"; done
  fi
}

# on_workers NODE WORKERS COMMAND...
on_workers() {
  # Otherwise a connection that is cut may seem to stand for ever.
  tpus tpu-vm ssh "$1" "--worker=$2" "--command=$(quoted "${@:3}")" \
    "--ssh-flag=-o ServerAliveInterval=30" "--ssh-flag=-o ServerAliveCountMax=4"
}

on_all() {
  local node failed=0
  for node in $(nodes); do on_workers "$node" all "$@" || failed=1; done
  return "$failed"
}

on_first() { on_workers "$(nodes | head -n 1)" 0 "$@"; }

worker=vswin_jax/launch/tpu_vm_worker.sh

# What is done with a run also where nothing was copied yet.
status_of_run() {
  on_first bash -c "if [[ -x $worker ]]; then $worker status; else echo not started; fi"
}
kill_run() { on_all bash -c "if [[ -x $worker ]]; then $worker kill; fi"; }

# How many times what fails is tried: machines have started by then, connections stand again.
tries=5

# Prints how to give another command for the same slice.
how_to() {
  local options=("--name=$name" "--zone=$zone" ${project:+"--project=$project"})
  if ((slices > 1)); then options+=("--slices=$slices"); fi
  quoted "$0" "$1" "${options[@]}"
}

# give_up REASON [STATUS]
give_up() {
  say "$1; as long as the slice is there it costs: $(how_to delete)"
  exit "${2:-1}"
}

create() {
  local one_or_more=("--node-id=$name")
  if ((slices > 1)); then one_or_more=("--node-count=$slices" "--node-prefix=$name"); fi
  tpus queued-resources create "$name" "${one_or_more[@]}" "--accelerator-type=$type" \
    "--runtime-version=$runtime" ${spot:+--spot}
}

describe() { tpus queued-resources describe "$name" '--format=value(state.state)'; }

# Sets `state`: that of the slice, empty if there is none. Who can't tell must not say that there is
# none: it would be created again.
read_state() {
  local try errors
  state=ACTIVE
  if [[ $dry_run ]]; then
    describe
    return
  fi
  errors=$(mktemp)
  for ((try = 1; try <= tries; try++)); do
    if state=$(describe 2>"$errors"); then break; fi
    state=""
    if grep --quiet NOT_FOUND "$errors"; then break; fi
    say "the state of $name can't be read (try $try of $tries): $(<"$errors")"
    if ((try < tries)); then sleep "$poll"; fi
  done
  rm -f "$errors"
  if ((try > tries)); then give_up "the state of the slice can't be read"; fi
}

wait_until_active() {
  local before=""
  while read_state && [[ $state != ACTIVE ]]; do
    if [[ $state != "$before" ]]; then say "$name is ${state:-not there}"; fi
    before=$state
    case $state in
      "" | FAILED | SUSPENDED) return 1 ;;
    esac
    sleep "$poll"
  done
}

# Sets `run`: "running", "ended STATUS" or "not started"; empty if worker 0 can't be reached.
read_run() {
  run="ended 0"
  if [[ $dry_run ]]; then
    status_of_run
  else
    run=$(status_of_run 2>/dev/null) || run=""
  fi
}

copy() {
  local archive="${TMPDIR:-/tmp}/$name.tar.gz" node
  if [[ -z $dry_run && $(git -C "$(dirname "$0")" status --porcelain 2>/dev/null) ]]; then
    say "changes that are not committed are not copied"
  fi
  execute git -C "$(dirname "$0")/.." archive --format=tar.gz "--output=$archive" HEAD || return
  for node in $(nodes); do
    tpus tpu-vm scp "$archive" "$node:vswin_jax.tar.gz" --worker=all || return
  done
  on_all bash -c 'rm -rf vswin_jax && mkdir vswin_jax && tar -xzf vswin_jax.tar.gz -C vswin_jax'
}

install() { on_all "$worker" install ${bucket:+"$bucket"}; }

start() {
  on_all ${cache:+env "JAX_COMPILATION_CACHE_DIR=$cache"} "$worker" run "${arguments[@]}"
}

# A run on a part of the workers waits for the others, and stands in the way of the next start.
start_or_kill() {
  if start; then return; fi
  kill_run || true
  return 1
}

log() { on_first "$worker" log "$@"; }

delete() { tpus queued-resources delete "$name" --force --quiet; }

# Creates the slice; an answer that got lost does not mean that it was not.
ask_for_slice() {
  local try
  for ((try = 1; try <= tries; try++)); do
    if create; then return; fi
    read_state
    if [[ $state ]]; then return; fi
    say "the slice can't be created (try $try of $tries)"
    if ((try < tries)); then sleep "$poll"; fi
  done
  fail "the slice can't be created"
}

# persist WHAT COMMAND...: tries a command on the slice a few times; fails if the slice is lost.
persist() {
  local what=$1 try
  shift
  for ((try = 1; try <= tries; try++)); do
    if "$@"; then return; fi
    read_state
    if [[ $state != ACTIVE ]]; then
      say "$name is ${state:-gone}"
      return 1
    fi
    say "$what failed (try $try of $tries)"
    if ((try < tries)); then sleep "$poll"; fi
  done
  give_up "$what failed $tries times"
}

can_read_run() { read_run && [[ $run ]]; }

# Makes sure that there is a slice and a run on it.
bring_up() {
  run=""
  if [[ $dry_run ]]; then state=""; else read_state; fi
  case $state in
    FAILED | SUSPENDED | SUSPENDING)
      delete || return
      state=""
      ;;
  esac
  if [[ -z $state ]]; then
    ask_for_slice
    wait_until_active || return
  else
    wait_until_active || return
    persist "looking at the run" can_read_run || return
    if [[ $run == running ]]; then return; fi
    # Other workers may still have processes of it.
    persist "ending the last run" kill_run || return
  fi
  persist "copying" copy && persist "installing" install && persist "starting" start_or_kill
}

# Prints what the run says from line number `line` on, and counts the lines.
print_log() {
  local text
  while IFS= read -r text; do
    printf '%s\n' "$text"
    line=$((line + 1))
  done < <(log "$line" || true)
  # The connection was cut in the middle of a line: that is read again as a whole.
  if [[ $text ]]; then printf '%s\n' "$text"; fi
}

# Follows the run until it ends for good (well, as a wrong command, or because it was asked to), or
# is lost with its slice. Sets `run`, empty if it is lost. Gives up if worker 0 stays out of reach on
# a slice that is there: the run may be going on.
follow() {
  local starts=0 patience=10 line=1
  run=running
  while :; do
    if [[ $run == running ]]; then print_log; fi
    read_run
    if [[ $run == "ended 0" ]] || is_user_error "${run#ended }"; then return; fi
    read_state
    if [[ $state != ACTIVE ]]; then
      say "$name is ${state:-gone}"
      run=""
      return
    fi
    case $run in
      running) patience=10 ;;
      # The system of a VM that is preempted asks the run to stop, and then can't be reached, before
      # the slice is said to be gone.
      "" | "ended $STOPPED")
        if ((--patience < 0)); then
          if [[ -z $run ]]; then
            say "worker 0 can't be reached; see why, then start \`$command\` again:" \
              "$(how_to status)"
            give_up "the slice is ACTIVE and is kept, with whatever runs on it"
          fi
          return
        fi
        ;;
      *)
        say "the run: $run"
        if ((starts == restarts)); then
          say "started $((starts + 1)) times: giving up"
          return
        fi
        starts=$((starts + 1))
        say "starting it again on all workers ($starts of $restarts)"
        # A machine that was started anew has nothing mounted.
        if ! { persist "ending the last run" kill_run && persist "installing" install &&
          persist "starting" start_or_kill; }; then
          run=""
          return
        fi
        run=running patience=10 line=1
        continue
        ;;
    esac
    sleep "$poll"
  done
}

all() {
  local creation
  for ((creation = 0; creation <= recreations; creation++)); do
    if ((creation)); then
      say "creating the slice again ($creation of $recreations)"
      delete || true
      sleep "$poll"
    fi
    if bring_up; then follow; else run=""; fi
    case $run in
      "") ;;
      "ended 0")
        delete || give_up "the run has ended well, but the slice can't be deleted"
        return
        ;;
      "ended "*) give_up "the run $run" "${run#ended }" ;;
      *) give_up "the run: $run" ;;
    esac
  done
  give_up "created the slice $creation times"
}

case $command in
  create) create ;;
  wait) wait_until_active ;;
  status)
    describe
    status_of_run
    ;;
  copy) copy ;;
  install) install ;;
  run) start ;;
  log) log ;;
  stop) on_first "$worker" stop ;;
  kill) kill_run ;;
  delete) delete ;;
  all) all ;;
esac
