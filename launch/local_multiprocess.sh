#!/usr/bin/env bash
# Several processes on this machine as one program:
#   launch/local_multiprocess.sh 2 --config=configs/shop.py:smoke --workdir=runs/two
# On a CPU each process brings one device; of several GPUs process I takes GPU I.
# Ctrl-C or SIGTERM here reaches one process; all of them save at the same training step, or end after the present stage.
set -euo pipefail

count=${1:?usage: launch/local_multiprocess.sh PROCESSES --config=configs/shop.py [other flags of llmsrec_jax.main]}
shift
address=127.0.0.1:${PORT:-$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}
pids=()
for ((i = 0; i < count; i++)); do
  # in the background a shell ignores SIGINT for its children, so Ctrl-C comes only through the trap
  JAX_LOCAL_DEVICE_IDS=$i python -m llmsrec_jax.main "$@" --distributed="$address,$count,$i" &
  pids+=("$!")
done
trap 'kill -TERM "${pids[0]}" 2>/dev/null || true' INT TERM

code=0
for pid in "${pids[@]}"; do
  one=0
  wait "$pid" || one=$?
  while kill -0 "$pid" 2>/dev/null; do # a signal had ended wait, not the process
    one=0
    wait "$pid" || one=$?
  done
  ((one == 0)) || code=$one
done
exit "$code"
