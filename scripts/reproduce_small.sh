#!/usr/bin/env bash
# Does pre-training pay? On a folder of labelled images:
#   scripts/reproduce_small.sh DATA [OUT [EPOCHS [SEEDS]]]      (default: reproduction 100 2)
# DATA/train/CLASS/* is trained on, and all of DATA's other folders (validation/CLASS/*, test/CLASS/*, ...) are validated
# on. Pre-trains with four variants: the paper's, with HOG, for EPOCHS epochs; pixels as the target; and the two decoders
# of visible patches, for as many more epochs as they are faster. Probes these encoders and an untrained one, fine-tunes
# from them and from scratch with SEEDS seeds, and draws the table. About four hours on two CPU cores for 3,000 images: a
# small ViT. Where there are GPUs: ViT-S and ViT-B, 800 epochs of pre-training, three seeds. A second call resumes where
# the first ended.
set -euo pipefail
if [[ ${1:-} =~ ^(-h|--help)$ ]]; then
  sed -n 's/^# //p;/^set/q' "$0"
  exit
elif (($# < 1 || $# > 4)) || [[ $1 = -* || ! ${3:-1} =~ ^[1-9][0-9]*$ || ! ${4:-1} =~ ^[1-9][0-9]*$ ]]; then
  echo "error: usage: scripts/reproduce_small.sh DATA [OUT [EPOCHS [SEEDS]]], --help says what these are" >&2
  exit 2
fi
data=$1 out=${2:-reproduction} epochs=${3:-100} seeds=${4:-2}
[ -d "$data/train" ] || { echo "error: there is no $data/train: DATA holds train/CLASS/* and other such folders" >&2; exit 2; }
data=$(realpath "$data") out=$(realpath -m "$out")
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
step() { printf '\n== %s\n' "$*"; }
run() { deepspeed --quiet --num_gpus "$processes" "$@"; }

step "shards"
for class in "$data"/train/*/; do # the other folders as one
  class=$(basename "$class")
  mkdir -p "$out/validation/$class"
  for folder in "$data"/*/"$class"; do
    part=$(basename "$(dirname "$folder")")
    [ "$part" = train ] || ln -sfn "$folder" "$out/validation/$class/$part"
  done
done
options=(--samples-per-shard 200 --max-rejects 1000000) # what cannot be used is told, and left out
maskfeat-shards build "$data/train" "$out/shards/train" "${options[@]}"
maskfeat-shards build "$out/validation" "$out/shards/validation" "${options[@]}"
sets=(data.shards="$out/shards/train" data.validation="$out/shards/validation")

# By variant: its recipe and settings, and how many epochs it makes in the time of ten of the paper's. Of a CPU these are
# the ratios of docs/explanation/visible.md.
declare -A variants=(
  [hog]="small" [pixels]="small target.kind=pixels"
  [light]="small_visible" [local]="small_visible model.decoder=local target.kind=hog_scales"
)
declare -A in_the_time_of_ten=([hog]=10 [pixels]=10 [light]=26 [local]=19)
names=(hog pixels light local)

# study FOLDER EPOCHS SEEDS PRETRAINING FINETUNING: the last two are settings in one string each
study() {
  local folder=$1 epochs=$2 seeds=$3 kind seed init variant pretraining finetuning
  read -ra pretraining <<<"$4"
  read -ra finetuning <<<"$5"
  for kind in "${names[@]}"; do
    step "$folder: pre-training, $kind"
    read -ra variant <<<"${variants[$kind]} optim.epochs=$((epochs * in_the_time_of_ten[$kind] / 10))"
    [ -e "$folder/pretrain/$kind/complete" ] ||
      run scripts/pretrain.py "${variant[@]}" run.dir="$folder/pretrain/$kind" "${sets[@]}" "${pretraining[@]}"
    [ -e "$folder/weights/$kind/model.safetensors" ] ||
      python scripts/export.py "$folder/pretrain/$kind" "$folder/weights/$kind"
    step "$folder: probes, $kind"
    run scripts/probe.py "$folder/pretrain/$kind" "${sets[@]}" --out "$folder/probe/$kind"
  done
  step "$folder: probes, untrained"
  run scripts/probe.py "$folder/pretrain/hog" "${sets[@]}" --untrained --out "$folder/probe/scratch"
  for ((seed = 0; seed < seeds; seed++)); do
    for kind in scratch "${names[@]}"; do
      step "$folder: fine-tuning, $kind, seed $seed"
      init=null
      [ "$kind" = scratch ] || init=$folder/weights/$kind
      [ -e "$folder/finetune/$kind-$seed/complete" ] ||
        run scripts/finetune.py small run.dir="$folder/finetune/$kind-$seed" run.seed="$seed" model.init="$init" \
          "${sets[@]}" "${finetuning[@]}"
    done
  done
  step "$folder: result"
  python scripts/compare.py "$folder"
}

processes=$(python -c 'import torch; print(torch.cuda.device_count())')
if [ "$processes" = 0 ]; then
  export DS_ACCELERATOR=cpu OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  processes=2
  command -v "${CXX:-g++}" >/dev/null || slow=engine.compile=none
  study "$out" "$epochs" "$seeds" "${slow:-}" ""
else
  while ((256 % processes)); do ((processes--)); done # a batch of 256 is shared out evenly
  for model in vit_small_patch16_224 vit_base_patch16_224; do
    gpu="model.name=$model model.options={} data.image_size=128 data.decode_threads=4 optim.batch_size=256 \
      engine.precision=bf16 engine.zero_stage=1"
    study "$out/$model" 800 3 "$gpu engine.compile=all optim.warmup_epochs=40 optim.lr=5.0e-4" \
      "$gpu engine.compile=all optim.epochs=100 optim.warmup_epochs=5 optim.lr=1.0e-3"
  done
fi
