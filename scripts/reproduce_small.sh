#!/usr/bin/env bash
# Measure what pre-training is worth on a folder of labelled images:
#   scripts/reproduce_small.sh DATA [OUT [EPOCHS [SEEDS]]]      (default: reproduction 100 2)
# DATA/train/CLASS/* is used for training, and all other folders of DATA (validation/CLASS/*, test/CLASS/*, ...) for
# validation. The script pre-trains four variants: HOG as in the paper, for EPOCHS epochs; pixels as the target; and the
# two decoders that encode visible patches only, for as many more epochs as they are faster. It probes every block of
# these encoders and of an untrained one, fine-tunes from them and from scratch with SEEDS seeds for a fifth of EPOCHS,
# and prints a table. On CPUs the model is a small ViT at 96 pixels, which takes about four hours on two cores for 3,000
# images. On GPUs it is a ViT-S at 224 pixels, every variant for EPOCHS (200) epochs, with the encoder, image size and
# number of epochs of the public Imagenette benchmark of stable-pretraining; fine-tuning takes 100 epochs there. A second
# call with the same EPOCHS resumes where the first ended.
set -euo pipefail
if [[ ${1:-} =~ ^(-h|--help)$ ]]; then
  sed -n 's/^# //p;/^set/q' "$0"
  exit
elif (($# < 1 || $# > 4)) || [[ $1 = -* || ! ${3:-1} =~ ^[1-9][0-9]*$ || ! ${4:-1} =~ ^[1-9][0-9]*$ ]]; then
  echo "error: usage: scripts/reproduce_small.sh DATA [OUT [EPOCHS [SEEDS]]]; see --help" >&2
  exit 2
fi
data=$1 out=${2:-reproduction} seeds=${4:-2}
[ -d "$data/train" ] || { echo "error: there is no $data/train: DATA has to contain train/CLASS/* and other such folders" >&2; exit 2; }
data=$(realpath "$data") out=$(realpath -m "$out")
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
epochs=${3:-$([ "$gpus" = 0 ] && echo 100 || echo 200)}
if [ -e "$out/epochs" ] && [ "$(<"$out/epochs")" != "$epochs" ]; then
  echo "error: $out has results of $(<"$out/epochs") epochs: give this number of epochs, or another OUT" >&2
  exit 2
fi
mkdir -p "$out"
echo "$epochs" >"$out/epochs"
step() { printf '\n== %s\n' "$*"; }

step "shards"
for class in "$data"/train/*/; do # links to all other folders, as one
  class=$(basename "$class")
  mkdir -p "$out/validation/$class"
  for folder in "$data"/*/"$class"; do
    part=$(basename "$(dirname "$folder")")
    [ "$part" = train ] || ln -sfn "$folder" "$out/validation/$class/$part"
  done
done
options=(--samples-per-shard 200 --max-rejects 1000000) # unusable images are reported and left out
maskfeat-shards build "$data/train" "$out/shards/train" "${options[@]}"
maskfeat-shards build "$out/validation" "$out/shards/validation" "${options[@]}"
sets=(data.shards="$out/shards/train" data.validation="$out/shards/validation")

# The recipe and settings of each variant, and the number of its epochs that take the time of ten of HOG's. For CPUs
# these are the ratios of docs/explanation/visible.md.
declare -A variants=(
  [hog]="small" [pixels]="small target.kind=pixels"
  [light]="small_visible" [local]="small_visible model.decoder=local target.kind=hog_scales"
)
declare -A in_the_time_of_ten=([hog]=10 [pixels]=10 [light]=26 [local]=19)
names=(hog pixels light local)

probed() { compgen -G "$out/probe/$1/*.json" >/dev/null; }

# study EPOCHS BLOCKS PRETRAINING FINETUNING: train and compare; the last two are settings, in one string each
study() {
  local epochs=$1 blocks=$2 kind seed init variant pretraining finetuning layers
  read -ra pretraining <<<"$3"
  read -ra finetuning <<<"$4"
  mapfile -t layers < <(seq 0 $((blocks - 1)))
  for kind in "${names[@]}"; do
    step "pre-training, $kind"
    read -ra variant <<<"${variants[$kind]} optim.epochs=$((epochs * in_the_time_of_ten[$kind] / 10))"
    [ -e "$out/pretrain/$kind/complete" ] ||
      maskfeat pretrain "${variant[@]}" run.dir="$out/pretrain/$kind" "${sets[@]}" "${pretraining[@]}"
    [ -e "$out/weights/$kind/model.safetensors" ] ||
      maskfeat export "$out/pretrain/$kind" "$out/weights/$kind"
    step "probes, $kind"
    probed "$kind" ||
      maskfeat probe "$out/pretrain/$kind" "${sets[@]}" --layer "${layers[@]}" --out "$out/probe/$kind"
  done
  step "probes, untrained"
  probed scratch ||
    maskfeat probe "$out/pretrain/hog" "${sets[@]}" --layer "${layers[@]}" --untrained --out "$out/probe/scratch"
  for ((seed = 0; seed < seeds; seed++)); do
    for kind in scratch "${names[@]}"; do
      step "fine-tuning, $kind, seed $seed"
      init=null
      [ "$kind" = scratch ] || init=$out/weights/$kind
      [ -e "$out/finetune/$kind-$seed/complete" ] ||
        maskfeat finetune small run.dir="$out/finetune/$kind-$seed" run.seed="$seed" model.init="$init" \
          "${sets[@]}" "${finetuning[@]}"
    done
  done
  step "result"
  python scripts/compare.py "$out"
}

tenth() { echo "$(($1 / 10)).$(($1 % 10))"; } # of a number of epochs, to warm up
if [ "$gpus" = 0 ]; then
  slow="" warmup=""
  command -v "${CXX:-g++}" >/dev/null || slow=engine.compile=none
  ((epochs > 10)) || warmup=optim.warmup_epochs=$(tenth "$epochs") # the recipes have 5 epochs
  tuned=$((epochs < 5 ? 1 : epochs / 5))
  study "$epochs" 6 "$slow $warmup" "optim.epochs=$tuned optim.warmup_epochs=$(tenth "$tuned")"
else
  in_the_time_of_ten=([hog]=10 [pixels]=10 [light]=10 [local]=10)
  for kind in light local; do variants[$kind]+=" model.decoder_width=256"; done
  vit="model.name=vit_small_patch16_224 model.options={} data.image_size=224 data.decode_threads=4 optim.batch_size=256 \
    engine.precision=bf16 engine.zero_stage=1 engine.compile=all"
  study "$epochs" 12 "$vit optim.warmup_epochs=$(tenth "$epochs") optim.lr=5.0e-4" \
    "$vit optim.epochs=100 optim.warmup_epochs=5 optim.lr=1.0e-3"
fi
