#!/usr/bin/env bash
# What a better teacher and minutes of a GPU give a GAN of photos: trains a class-conditional teacher of CIFAR-10 at 16x16,
# then refines a GAN, with the teacher's network behind it and without, and distils the teacher, all side by side.
# bash tools/dev/gpu_cifar.sh OUT DATA.zip GAN.pkl [cuda|cpu]
#
# TEACHER and STUDENTS are the seconds of the two parts, KIMG the length for which rates fall. OUT gets the newest snapshot
# of each run, NAME.pkl, and its log. With cpu it is a rehearsal. DATA.zip and GAN.pkl are those of make_cifar_models.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

USAGE="usage: bash tools/dev/gpu_cifar.sh OUT DATA.zip GAN.pkl [cuda|cpu]"
OUT=${1:?$USAGE} DATA=${2:?$USAGE} GAN=${3:?$USAGE} DEVICE=${4:-cuda}
PY=${PY:-python3} TEACHER=${TEACHER:-190} STUDENTS=${STUDENTS:-220} KIMG=${KIMG:-280}
TEACHER_TICK=50 TICK=10 WIDTH=64 BATCH=128
[[ $DEVICE == cpu ]] && TEACHER_TICK=0.032 TICK=0.016 WIDTH=8 BATCH=16
mkdir -p "$OUT"

source tools/dev/gpu_training.sh

REAL="--data=$DATA --cond=true --mirror=true"
train teacher "$TEACHER" --tick=$TEACHER_TICK --kind=edm $REAL --kimg=100000 --batch=$((2 * BATCH)) --amp=bf16 \
    --model-channels=$WIDTH --channel-mult=1,2,2 --num-blocks=1 --attn-resolutions=8 --dropout=0 --label-dropout=0.1 \
    --augment=0 --lr=1.5e-3 --lr-rampup=10 --ema=50

DI="--kind=di --teacher=$OUT/teacher.pkl --headroom=0 --divergence=sid --batch=$BATCH --amp=bf16 --lr=5e-4 --fake-lr=5e-4
    --lr-decay=0.5 --kimg=$KIMG --ema=10"
train refiner-3 "$STUDENTS" --tick=$TICK $DI --gan-pkl="$GAN" --student=refiner --seed=3 &
train refiner-4 "$STUDENTS" --tick=$TICK $DI --gan-pkl="$GAN" --student=refiner --seed=4 &
train sid-3 "$STUDENTS" --tick=$TICK $DI --gan-pkl="$GAN" --seed=3 &
train one-step-3 "$STUDENTS" --tick=$TICK $DI --sigma-init=2.5 --seed=3 &
train gan-continued-1 "$STUDENTS" --tick=$TICK --kind=gan --resume="$GAN" $REAL --kimg=100000 --batch=$BATCH --mixing=0 \
    --pl-weight=0 --aug=noaug --gamma=0.05 --lr=2e-3 --ema=20 --seed=1 &
wait
