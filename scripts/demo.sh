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
step() { printf '\n== %s\n' "$*"; }

step "images: overlapping crops of nine photographs; validation shows other crops of the same ones"
if [ -e "$demo/shards/validation/dataset.json" ]; then
  echo "reusing $demo/images"
else
  python scripts/demo_data.py "$demo/images"
fi

step "shards"
maskfeat-shards build "$demo/images/train" "$demo/shards/train" --samples-per-shard 500
maskfeat-shards build "$demo/images/validation" "$demo/shards/validation"

step "pre-training"
processes=$(python -c 'import torch; print(torch.cuda.device_count())')
while ((processes > 1 && 64 % processes)); do ((processes--)); done # a batch of 64 is shared out evenly
if [ "$processes" = 0 ]; then
  export DS_ACCELERATOR=cpu OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  processes=2
fi
options=()
if ! command -v "${CXX:-g++}" >/dev/null; then
  echo "no C++ compiler: the HOG target is not compiled, which takes about a minute more"
  options+=(engine.compile=none)
fi
if [ -e "$demo/weights/model.safetensors" ]; then
  echo "reusing $demo/run"
else
  deepspeed --quiet --num_gpus "$processes" scripts/pretrain.py demo run.dir="$demo/run" \
    data.shards="$demo/shards/train" data.validation="$demo/shards/validation" "${options[@]}"
fi

step "export"
if [ -e "$demo/weights/model.safetensors" ]; then
  echo "reusing $demo/weights"
else
  python scripts/export.py "$demo/run" "$demo/weights"
fi

step "result"
python scripts/report.py "$demo/run"
echo "weights        $demo/weights: timm.create_model(\"local-dir:$demo/weights\", pretrained=True)"
