#!/usr/bin/env bash
# Trains on one machine with GPUs: one process that uses them all and is restarted after a failure.
#
#   launch/gpu_box.sh --config=... --workdir=...
#
#   --dry_run   print the command and run nothing
#   --help      print this
#
# Environment variables:
#   CUDA_VISIBLE_DEVICES        GPUs to use (all)
#   RESTARTS                    maximum number of restarts after failures (3)
#   JAX_COMPILATION_CACHE_DIR   folder of compiled programs (~/.cache/vswin_jax)
#   PYTHON                      interpreter (python)
#
# SIGTERM or Ctrl-C makes the run save and end; a second one kills it.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

read_arguments "$0" "$@"
exec "${PYTHON:-python}" "$(dirname "$0")/local.py" --platform=gpu "--restarts=${RESTARTS:-3}" \
  ${dry_run:+--dry_run} -- "${arguments[@]}"
