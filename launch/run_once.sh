#!/usr/bin/env bash
# Runs `python -m vswin_jax.main` once, where something else starts it again after its end:
#
#   launch/run_once.sh --config=... --workdir=...
#
# SIGTERM and SIGINT are passed on to it, so that it saves and ends. The status is that of the run,
# but 143 (ended by SIGTERM) if it was asked to stop before its end: what watches over it must not
# take that for success.
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
command=("${PYTHON:-python}" -m vswin_jax.main "${arguments[@]}")
if [[ $dry_run ]]; then
  quoted "${command[@]}"
  exit 0
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkfifo "$folder/output"
tee "$folder/said" <"$folder/output" &
reader=$!
export PYTHONUNBUFFERED=1
"${command[@]}" >"$folder/output" 2>&1 &
child=$!
trap 'kill -TERM "$child" 2>/dev/null || true' TERM INT
status=0
wait_for "$child" || status=$?
wait_for "$reader" || true
if ((status == 0)) && grep --quiet "asked to stop: saved step" "$folder/said"; then
  say "stopped before its end"
  status=143
fi
if [[ ${STATUS_FILE:-} ]]; then echo "$status" >"$STATUS_FILE"; fi
exit "$status"
