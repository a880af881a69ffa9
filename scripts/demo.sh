#!/usr/bin/env bash
# From nothing to a pre-trained vision transformer, on any Linux machine, with or without a GPU:
#   scripts/demo.sh [FOLDER]      (default: demo)
# installs, makes a data set of photographs that come with scikit-image and scikit-learn, shards it, pre-trains a small
# ViT with DeepSpeed, exports it and draws what it has learned: about 5 minutes on two cores after the install.
# A second call reuses what is there; remove FOLDER to start over.
set -euo pipefail
if [[ ${1:-} =~ ^(-h|--help)$ ]]; then
  sed -n 's/^# //p;/^set/q' "$0"
  exit
elif (($# > 1)) || [[ ${1:-} = -* ]]; then
  echo "error: usage: scripts/demo.sh [FOLDER], --help says more" >&2
  exit 2
fi
demo=${1:+$(realpath -m "$1")}
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
demo=${demo:-demo}
source scripts/demo_steps.sh

step "images: overlapping crops of nine photographs; validation shows other crops of the same ones"
if [ -e "$demo/shards/validation/dataset.json" ]; then
  echo "reusing $demo/images"
else
  python scripts/demo_data.py "$demo/images"
fi

step "shards"
maskfeat-shards build "$demo/images/train" "$demo/shards/train" --samples-per-shard 500
maskfeat-shards build "$demo/images/validation" "$demo/shards/validation"

pretrain demo
export_weights

step "result"
maskfeat report "$demo/run"
echo "weights        $demo/weights: timm.create_model(\"local-dir:$demo/weights\", pretrained=True)"
