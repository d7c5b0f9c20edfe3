#!/usr/bin/env bash
#SBATCH --job-name=vswin_jax
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
# Trains under SLURM, on the GPUs of one or more nodes. In the clone of the repository:
#
#   sbatch --nodes=4 --gpus-per-node=8 --exclusive --time=24:00:00 launch/slurm.sh \
#     --config=... --workdir=...
#
# The workdir and the data must have the same names on all nodes. After a fault all processes are
# ended and started again. Five minutes before the time limit the run saves and ends, and the job
# goes back to the queue; it resumes by itself.
#
#   --dry_run   print the command of a start and run nothing
#   --help      print this
#
# In the environment:
#   PROCESSES_PER_NODE          1: one process uses all GPUs of a node; gpus: each has its own (1)
#   RESTARTS                    how many times all are started again after a fault (3)
#   REQUEUES                    how many times the job goes back to the queue at its time limit (100)
#   JAX_COMPILATION_CACHE_DIR   folder of compiled programs (compilation_cache in the workdir)
#   PYTHON                      the interpreter (python)
set -euo pipefail
# SLURM runs a copy of this file from a folder of its own.
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
if [[ ! -f launch/common.sh ]]; then
  echo "error: no launch/common.sh in $PWD; submit the job in the clone of the repository" >&2
  exit 1
fi
# shellcheck source-path=SCRIPTDIR source=common.sh
source launch/common.sh

read_arguments "$0" "$@"
restarts=${RESTARTS:-3} requeues=${REQUEUES:-100}
check_count RESTARTS "$restarts"
check_count REQUEUES "$requeues"
if [[ -z ${SLURM_JOB_ID:-} && -z $dry_run ]]; then
  fail "not in a job; submit this file: sbatch --nodes=... --gpus-per-node=... launch/slurm.sh ..."
fi
nodes=${SLURM_JOB_NUM_NODES:-1}
processes=${PROCESSES_PER_NODE:-1}
if [[ $processes == gpus ]]; then
  processes=${SLURM_GPUS_ON_NODE:-0}
  ((processes)) || fail "PROCESSES_PER_NODE=gpus in a job without GPUs; give --gpus-per-node"
elif [[ $processes != 1 ]]; then
  fail "PROCESSES_PER_NODE must be 1 or gpus, got '$processes'"
fi
cpus=${SLURM_CPUS_ON_NODE:-}
if [[ $cpus ]] && ((cpus < processes)); then
  fail "$processes processes on a node need a CPU each at least, but the job has $cpus there;" \
    "give --exclusive, or more --cpus-per-task"
fi
cache=$(compilation_cache "${arguments[@]}")

# Sets `command`, that of start number $1.
set_command() {
  command=(
    env "JAX_COMPILATION_CACHE_DIR=$cache"
    # Another port at every start, none of those that the system gives away.
    "JAX_COORDINATOR_PORT=$((10000 + (${SLURM_JOB_ID:-0} * 16 + $1) % 20000))"
    srun "--nodes=$nodes" "--ntasks=$((nodes * processes))" "--ntasks-per-node=$processes"
  )
  # Otherwise a task would get one core, and decode video with it.
  if [[ $cpus ]]; then command+=("--cpus-per-task=$((cpus / processes))"); fi
  # Processes find their GPUs by themselves and have to see them all.
  command+=(--gpu-bind=none --kill-on-bad-exit=1)
  command+=("${PYTHON:-python}" -m vswin_jax.main "--stop_status=$STOPPED" "${arguments[@]}")
}

if [[ $dry_run ]]; then
  set_command 0
  quoted "${command[@]}"
  exit 0
fi

# The status of the task that ended first: `srun` returns the highest, and those that it ends itself
# have high ones.
first_status() {
  local line
  line=$(grep --max-count=1 -E '^srun: error: .*: tasks? [0-9,-]+: ' "$1") || return 0
  say "${line#srun: error: }"
  if [[ $line =~ 'Exited with exit code '([0-9]+) ]]; then echo "${BASH_REMATCH[1]}"; else echo 137; fi
}

# Asks the tasks to save and end, again and again: one that is only starting hears nothing.
# shellcheck disable=SC2329  # called by a trap
ask_tasks() {
  while kill -0 "$$" 2>/dev/null; do
    scancel --signal=TERM "$SLURM_JOB_ID" || say "scancel failed"
    sleep 10 >/dev/null 2>&1
  done
}

requeue="" stopping="" asking=""
end_asking() { if [[ $asking ]]; then kill "$asking" 2>/dev/null || true; fi; }
# The time limit is near.
trap '
  if [[ -z $requeue ]]; then
    requeue=yes stopping=yes
    say "time is nearly up: saving"
    ask_tasks &
    asking=$!
  fi
' USR1
# Cancelled or preempted: SLURM has told the tasks, and knows whether the job comes back.
trap 'stopping=yes' TERM

folder=$(mktemp -d)
trap 'end_asking; rm -rf "$folder"' EXIT
status=$STOPPED
for ((start = 0; start <= restarts; start++)); do
  if [[ $stopping ]]; then break; fi
  if ((start)); then say "starting all processes again ($start of $restarts)"; fi
  set_command "$start"
  rm -f "$folder/errors"
  mkfifo "$folder/errors"
  # A signal to the whole job must not take away what reads.
  (trap '' TERM INT USR1 && exec tee "$folder/said" <"$folder/errors" >&2) &
  reader=$!
  "${command[@]}" 2>"$folder/errors" &
  status=0
  wait_for $! || status=$?
  wait_for "$reader" || true
  if ((status == 0)) || [[ $stopping ]]; then break; fi
  first=$(first_status "$folder/said")
  status=${first:-$status}
  say "the run ended with status $status"
  if is_user_error "$status" || ((status == STOPPED)); then break; fi
  if ((start == restarts)); then say "started $((start + 1)) times: giving up"; fi
done

end_asking
if [[ $requeue ]] && ((status)) && ! is_user_error "$status"; then
  if ((${SLURM_RESTART_COUNT:-0} >= requeues)); then
    fail "queued $((requeues + 1)) times: giving up"
  fi
  say "back to the queue"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$status"
