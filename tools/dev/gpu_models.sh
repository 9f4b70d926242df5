#!/usr/bin/env bash
# Trains 32x32 Fashion-MNIST models on a GPU and refines the GAN, in at most six minutes: the teacher and the GAN side
# by side, then Diff-Instruct. bash tools/dev/gpu_models.sh OUT [cuda|cpu]
#
# Needs what gpu_check.sh needs, and SOURCE, the folder of Fashion-MNIST's files. Trainings that run out of time stop
# with their newest snapshot. OUT gets gan32.pkl, teacher32.pkl, refined32.pkl and the logs. With cpu it is a rehearsal.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

OUT=${1:?usage: bash tools/dev/gpu_models.sh OUT [cuda|cpu]}
DEVICE=${2:-cuda}
PY=${PY:-python3}
SOURCE=${SOURCE:-/usr/share/datasets/fashion-mnist}
LENGTHS=(400 200 80) TICK=20 BATCH=128 SPLIT=train # kimg of teacher, GAN and refinement, and between snapshots
[[ $DEVICE == cpu ]] && LENGTHS=(0.008 0.008 0.032) TICK=0.008 BATCH=8 SPLIT=test
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)

$PY -m torch_utils.ops.build --device="$DEVICE" > "$OUT/build.log" 2>&1 || echo "no native kernels: $OUT/build.log"
[[ -e $OUT/fashion-32.zip ]] || $PY tools/dataset_tool.py --source="$SOURCE" --split=$SPLIT --transform=pad \
    --resolution=32x32 --dest="$OUT/fashion-32.zip" > "$OUT/data.log" 2>&1

source tools/dev/gpu_training.sh

DATA="--data=$OUT/fashion-32.zip --cond=true --workers=2 --batch=$BATCH --tick=$TICK"
train teacher32 150 --kind=edm $DATA --kimg="${LENGTHS[0]}" --amp=bf16 --model-channels=32 --channel-mult=1,2,2 \
    --num-blocks=2 --attn-resolutions=8 --dropout=0 --label-dropout=0.1 --augment=0 --lr=2e-3 --lr-rampup=5 \
    --lr-decay=0.5 --ema=10 &
train gan32 150 --kind=gan $DATA --kimg="${LENGTHS[1]}" --cbase=1024 --cmax=64 --w-dim=64 --noise-inputs=false \
    --mixing=0 --pl-weight=0 --aug=noaug --gamma=0.05 --lr=2e-3 --ema=10 &
wait
train refined32 90 --kind=di --gan-pkl="$OUT/gan32.pkl" --teacher="$OUT/teacher32.pkl" --cfg=fashion --force=true \
    --kimg="${LENGTHS[2]}" --tick=$TICK
