#!/usr/bin/env bash
# Runs one process of `vswin_jax.main` in a SLURM task, a pod or a TPU VM:
#
#   launch/run_once.sh --config=... --workdir=...
#
# Passes SIGTERM and SIGINT on, so that the run saves and ends; its status then is 143, by which
# launchers tell it from a run that has finished. Output and errors go to the standard output.
#
#   --dry_run   print the command and run nothing
#   --help      print this
#
# Environment variables:
#   PYTHON        interpreter (python)
#   STATUS_FILE   file to write the exit status to (none)
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

read_arguments "$0" "$@"
command=("${PYTHON:-python}" -m vswin_jax.main "--stop_status=$STOPPED" "${arguments[@]}")
if [[ $dry_run ]]; then
  quoted "${command[@]}"
  exit 0
fi

stopping="" child=""
pass_on() { if [[ $stopping && $child ]]; then kill -TERM "$child" 2>/dev/null || true; fi; }
trap 'stopping=yes && pass_on' TERM INT
export PYTHONUNBUFFERED=1
"${command[@]}" 2>&1 &
child=$!
# For a signal that came before the child was started.
pass_on
status=0
wait_for "$child" || status=$?
if [[ ${STATUS_FILE:-} ]]; then echo "$status" >"$STATUS_FILE"; fi
exit "$status"
