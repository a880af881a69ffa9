# shellcheck shell=bash
# Sourced by demo.sh and demo_video.sh after setup.sh: the steps that they share. Results lie in the folder $demo.

step() { printf '\n== %s\n' "$*"; }

# pretrain RECIPE BATCH: on all GPUs that share out a batch of so many evenly, or on two processes of the CPU
pretrain() {
  step "pre-training"
  local processes options=()
  processes=$(python -c 'import torch; print(torch.cuda.device_count())')
  while ((processes > 1 && $2 % processes)); do ((processes--)); done
  if [ "$processes" = 0 ]; then
    export DS_ACCELERATOR=cpu OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    processes=2
  fi
  if ! command -v "${CXX:-g++}" >/dev/null; then
    echo "no C++ compiler: the HOG target is not compiled, which takes longer"
    options+=(engine.compile=none)
  fi
  if [ -e "$demo/weights/model.safetensors" ]; then
    echo "reusing $demo/run"
  else
    deepspeed --quiet --num_gpus "$processes" --master_port "${MASTER_PORT:-29500}" scripts/pretrain.py "$1" \
      run.dir="$demo/run" data.shards="$demo/shards/train" data.validation="$demo/shards/validation" "${options[@]}"
  fi
}

export_weights() {
  step "export"
  if [ -e "$demo/weights/model.safetensors" ]; then
    echo "reusing $demo/weights"
  else
    python scripts/export.py "$demo/run" "$demo/weights"
  fi
}
