#!/usr/bin/env bash
#SBATCH --job-name=vswin_jax
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
# Trains under SLURM on one or more nodes with GPUs. In the clone of the repository:
#
#   sbatch --nodes=4 --gpus-per-node=8 --exclusive --time=24:00:00 launch/slurm.sh \
#     --config=... --workdir=...
#
# The workdir and the data must have the same names on all nodes. After a failure all processes are
# restarted. Five minutes before the time limit the run saves and the job is queued again.
#
#   --dry_run   print the srun command and run nothing
#   --help      print this
#
# Environment variables:
#   PROCESSES_PER_NODE          1: one process uses all GPUs of a node; gpus: one process a GPU (1)
#   RESTARTS                    maximum number of restarts after failures (3)
#   REQUEUES                    maximum number of requeues at the time limit (100)
#   JAX_COMPILATION_CACHE_DIR   folder of compiled programs, on a shared disk (~/.cache/vswin_jax)
#   PYTHON                      interpreter (python)
set -euo pipefail
# SLURM runs a copy of this file that is stored elsewhere.
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
nodes=${SLURM_JOB_NUM_NODES:-1} cpus=${SLURM_CPUS_ON_NODE:-}
processes=${PROCESSES_PER_NODE:-1}
if [[ $processes == gpus ]]; then
  processes=${SLURM_GPUS_ON_NODE:-0}
  ((processes)) || fail "PROCESSES_PER_NODE=gpus in a job without GPUs; give --gpus-per-node"
elif [[ $processes != 1 ]]; then
  fail "PROCESSES_PER_NODE must be 1 or gpus, got '$processes'"
fi
if [[ $cpus ]] && ((cpus < processes)); then
  fail "$processes processes on a node need a CPU each at least, but the job has $cpus there;" \
    "give --exclusive, or more --cpus-per-task"
fi
command=(
  # JAX assigns the GPUs of a node, and must see all of them.
  srun "--nodes=$nodes" "--ntasks=$((nodes * processes))" "--ntasks-per-node=$processes"
  # srun gives a task one core by default, too few to decode videos.
  ${cpus:+"--cpus-per-task=$((cpus / processes))"} --gpu-bind=none --kill-on-bad-exit=1
  launch/run_once.sh "${arguments[@]}"
)
if [[ $dry_run ]]; then
  quoted "${command[@]}"
  exit 0
fi

# Prints the status of the task that failed first. srun returns the highest status, which may be
# that of a task that srun ended itself.
first_status() {
  local line
  line=$(grep --max-count=1 -E '^srun: error: .*: tasks? [0-9,-]+: ' "$1") || return 0
  if [[ $line =~ 'Exited with exit code '([0-9]+) ]]; then echo "${BASH_REMATCH[1]}"; else echo 137; fi
}

requeue="" stopping="" asking=""
# Asks the tasks to save and end, repeatedly: one that is starting does not handle signals yet.
# shellcheck disable=SC2329  # called by a trap
ask_tasks() {
  while kill -0 "$$" 2>/dev/null; do
    scancel --signal=TERM "$SLURM_JOB_ID" || log "scancel failed"
    sleep 10 >/dev/null 2>&1
  done
}
end_asking() { if [[ $asking ]]; then kill "$asking" 2>/dev/null || true; fi; }
trap '
  if [[ -z $requeue ]]; then
    requeue=yes stopping=yes
    log "the time limit is near: saving"
    ask_tasks &
    asking=$!
  fi
' USR1
# On scancel and preemption SLURM signals the tasks, and queues the job again if need be.
trap 'stopping=yes' TERM

messages=$(mktemp)
trap 'end_asking; rm -f "$messages"' EXIT
status=$STOPPED
for ((start = 0; start <= restarts; start++)); do
  if [[ $stopping ]]; then break; fi
  if ((start)); then log "restarting all processes ($start of $restarts)"; fi
  # A new port for each start, below those that the system assigns.
  export JAX_COORDINATOR_PORT=$((10000 + (SLURM_JOB_ID * 16 + start) % 20000))
  status=0
  # The tasks write to the standard output: these messages are srun's own.
  "${command[@]}" 2>"$messages" &
  wait_for $! || status=$?
  cat "$messages" >&2
  if ((status == 0)) || [[ $stopping ]]; then break; fi
  first=$(first_status "$messages")
  status=${first:-$status}
  log "the run ended with status $status"
  if is_user_error "$status" || ((status == STOPPED)); then break; fi
done

end_asking
if [[ $requeue ]] && ((status)) && ! is_user_error "$status"; then
  if ((${SLURM_RESTART_COUNT:-0} >= requeues)); then fail "queued $((requeues + 1)) times"; fi
  log "queuing the job again"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$status"
