#!/usr/bin/env bash
# Runs `python -m vswin_jax.main` once, where something else starts it again after its end:
#
#   launch/run_once.sh --config=... --workdir=...
#
# SIGTERM and SIGINT are passed on to it, so that it saves and ends. The status is that of the run,
# 143 if it was asked to stop before its end: what watches over it must not take that for success.
#
#   --dry_run   print the command and run nothing
#
# In the environment:
#   PYTHON        the interpreter (python)
#   STATUS_FILE   a file to write the status to (none)
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
# What came before the child was there.
pass_on
status=0
wait_for "$child" || status=$?
if ((status == STOPPED)); then say "stopped before its end"; fi
if [[ ${STATUS_FILE:-} ]]; then echo "$status" >"$STATUS_FILE"; fi
exit "$status"
