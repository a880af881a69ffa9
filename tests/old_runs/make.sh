#!/usr/bin/env bash
# How the data set and the runs in this folder were made, with the code of version 0.1.0 (commit 4dce2b0):
#   tests/old_runs/make.sh CHECKOUT OUT
# Each run was stopped after 3 of its 8 steps; NAME.jsonl has the metrics of the same run undisturbed.
set -euo pipefail
checkout=$(realpath "$1")
mkdir -p "$2"
cd "$2"
export PYTHONPATH=$checkout DS_ACCELERATOR=cpu OMP_NUM_THREADS=1
export RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=29611

python - <<'PYTHON'
from pathlib import Path

import numpy as np
from PIL import Image

rng = np.random.default_rng(0)
for name in ("one", "two"):
    for index in range(4):
        path = Path("images") / name / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((32, 24), Image.Resampling.BICUBIC).save(path, quality=60)
PYTHON
python -m shards.cli build images set --workers 1

settings=(
  data.image_size=32 data.lanes=1 data.read_threads=1 data.decode_threads=1 "model.options={embed_dim: 8, depth: 1, num_heads: 1}"
  optim.batch_size=4 optim.epochs=4 optim.warmup_epochs=1 optim.lr=0.3 engine.compile=none engine.precision=fp32
  run.log_every=1 run.eval_every=100 run.save_every=100
)
for steps in 3 8; do
  python "$checkout/scripts/pretrain.py" demo data.shards=set "${settings[@]}" engine.zero_stage=1 \
    run.dir=pretrain-$steps run.max_steps=$steps
  python "$checkout/scripts/finetune.py" small data.shards=set data.validation=set "${settings[@]}" engine.zero_stage=0 \
    optim.average=0.9 run.dir=finetune-$steps run.max_steps=$steps
done
for run in pretrain finetune; do
  rm -rf $run && mv $run-3 $run && mv $run-8/metrics.jsonl $run.jsonl && rm -rf $run-8
  rm -rf $run/.lock $run/complete $run/pictures $run/tensorboard
done
rm -r images
