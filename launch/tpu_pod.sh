#!/usr/bin/env bash
# LLM-SRec on a Cloud TPU slice of any number of hosts:
#   launch/tpu_pod.sh create                     # a queued resource with $TPU_NAME, $TPU_TYPE, $TPU_ZONE
#   launch/tpu_pod.sh install                    # this source tree and its packages on every host
#   launch/tpu_pod.sh run --config=configs/electronics.py --workdir=/mnt/shared/runs/electronics
#   launch/tpu_pod.sh delete
# The work folder must be one that every host sees (Filestore, or a bucket mounted with gcsfuse).
set -euo pipefail

name=${TPU_NAME:-llmsrec} zone=${TPU_ZONE:-us-east5-a} type=${TPU_TYPE:-v6e-16}
runtime=${TPU_RUNTIME:-v2-alpha-tpuv6e}
here=$(cd "$(dirname "$0")/.." && pwd)

everywhere() {
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

case ${1:-} in
  create)
    gcloud compute tpus queued-resources create "$name" --node-id="$name" --zone="$zone" \
      --accelerator-type="$type" --runtime-version="$runtime" ${TPU_SPOT:+--spot}
    ;;
  install)
    gcloud compute tpus tpu-vm scp --recurse "$here" "$name:llmsrec" --zone="$zone" --worker=all
    everywhere "cd llmsrec && python3 -m venv .venv && .venv/bin/pip install -e '.[tpu]'"
    ;;
  run)
    shift
    everywhere "cd llmsrec && .venv/bin/python -m llmsrec_jax.main --distributed=auto $(printf '%q ' "$@")"
    ;;
  delete)
    gcloud compute tpus queued-resources delete "$name" --zone="$zone" --force
    ;;
  *)
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
