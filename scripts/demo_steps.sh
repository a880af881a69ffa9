# shellcheck shell=bash
# Sourced by demo.sh and demo_video.sh after setup.sh: the steps that they share. Results lie in the folder $demo.

step() { printf '\n== %s\n' "$*"; }

# pretrain RECIPE: on all GPUs, or on the cores of the CPU
pretrain() {
  step "pre-training"
  local options=()
  if ! command -v "${CXX:-g++}" >/dev/null; then
    echo "no C++ compiler: the HOG target is not compiled, which takes longer"
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
