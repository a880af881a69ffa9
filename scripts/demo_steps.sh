# shellcheck shell=bash
# The steps that demo.sh and demo_video.sh share. They source this file after setup.sh. Results go to the folder $demo.

step() { printf '\n== %s\n' "$*"; }

# pretrain RECIPE: train on all GPUs, or on the cores of the CPU
pretrain() {
  step "pre-training"
  local options=()
  if ! command -v "${CXX:-g++}" >/dev/null; then
    echo "there is no C++ compiler, so the HOG target is not compiled and training takes longer"
    options+=(engine.compile=none)
  fi
  if [ -e "$demo/weights/model.safetensors" ]; then
    echo "reusing $demo/run"
  else
    maskfeat pretrain "$1" run.dir="$demo/run" data.shards="$demo/shards/train" \
      data.validation="$demo/shards/validation" "${options[@]}"
  fi
}

export_weights() {
  step "export"
  if [ -e "$demo/weights/model.safetensors" ]; then
    echo "reusing $demo/weights"
  else
    maskfeat export "$demo/run" "$demo/weights"
  fi
}
