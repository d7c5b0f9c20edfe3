#!/usr/bin/env bash
# Trains on one machine with one or more GPUs: one process that sees them all, started again after a
# fault.
#
#   launch/gpu_box.sh --config=... --workdir=...
#
#   --dry_run   print the command and run nothing
#   --help      print this
#
# In the environment:
#   CUDA_VISIBLE_DEVICES        the GPUs to use (all)
#   RESTARTS                    how many times the run is started again after a fault (3)
#   JAX_COMPILATION_CACHE_DIR   folder of compiled programs (compilation_cache in the workdir)
#   PYTHON                      the interpreter (python)
#
# SIGTERM or an interrupt makes the run save and end; a second one kills it.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

read_arguments "$0" "$@"
restarts=${RESTARTS:-3}
check_count RESTARTS "$restarts"
cache=$(compilation_cache "${arguments[@]}")
command=(
  env "JAX_COMPILATION_CACHE_DIR=$cache"
  "${PYTHON:-python}" "$(dirname "$0")/local.py" --platform=gpu "--restarts=$restarts"
  -- "${arguments[@]}"
)
if [[ $dry_run ]]; then
  quoted "${command[@]}"
else
  exec "${command[@]}"
fi
