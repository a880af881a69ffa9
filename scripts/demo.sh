#!/usr/bin/env bash
# Install the project and pre-train a small vision transformer, on any Linux machine, with or without a GPU:
#   scripts/demo.sh [FOLDER]      (default: demo)
# The demo makes a data set of photographs from scikit-image and scikit-learn, packs it into shards, pre-trains a small
# ViT with DeepSpeed, exports it and draws its predictions. After the installation it takes about 5 minutes on two
# cores. A second call reuses what is there; remove FOLDER to start over.
set -euo pipefail
if [[ ${1:-} =~ ^(-h|--help)$ ]]; then
  sed -n 's/^# //p;/^set/q' "$0"
  exit
elif (($# > 1)) || [[ ${1:-} = -* ]]; then
  echo "error: usage: scripts/demo.sh [FOLDER]; see --help" >&2
  exit 2
fi
demo=${1:+$(realpath -m "$1")}
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
demo=${demo:-demo}
source scripts/demo_steps.sh

step "images: overlapping crops of nine photographs; those for validation are of the same photographs"
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
