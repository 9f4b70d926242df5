#!/usr/bin/env bash
# Makes the shipped Fashion-MNIST models anew, from Debian's package dataset-fashion-mnist: about an hour on two CPU
# cores, GAN and teacher side by side. See stylegan_di/assets/MODEL_CARD.md for what came out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

PY=${PY:-.venv/bin/python}
SOURCE=${SOURCE:-/usr/share/datasets/fashion-mnist}
ASSETS=stylegan_di/assets

for split in train test; do
    suffix=$([[ $split == test ]] && echo -test || true)
    $PY tools/dataset_tool.py --source="$SOURCE" --split=$split --transform=pad --resolution=32x32 \
        --dest="datasets/fashion-32$suffix.zip"
    $PY tools/dataset_tool.py --source="datasets/fashion-32$suffix.zip" --transform=center-crop --resolution=16x16 \
        --dest="datasets/fashion-16$suffix.zip"
done

OMP_NUM_THREADS=1 $PY train.py --kind=gan --data=datasets/fashion-16.zip --cond=true --batch=32 --kimg=100 --tick=5 \
    --snap=5 --metrics=none --cbase=1024 --cmax=64 --w-dim=64 --noise-inputs=false --mixing=0 --pl-weight=0 --aug=noaug \
    --gamma=0.05 --lr=2e-3 --ema=10 --device=cpu --outdir=runs --desc=asset &
OMP_NUM_THREADS=1 $PY train.py --kind=edm --data=datasets/fashion-16.zip --cond=true --batch=64 --kimg=320 --tick=8 \
    --snap=8 --metrics=none --model-channels=32 --channel-mult=1,1,2 --num-blocks=1 --attn-resolutions=4 --dropout=0 \
    --label-dropout=0.1 --augment=0 --lr=2e-3 --lr-rampup=5 --lr-decay=0.5 --ema=5 --device=cpu --outdir=runs --desc=asset
wait

cp runs/*-gan-cond-auto-batch32-asset/network-snapshot-000100.pkl $ASSETS/fashion-gan.pkl
cp runs/*-edm-cond-ddpmpp-edm-batch64-asset/network-snapshot-000320.pkl $ASSETS/fashion-teacher.pkl
$PY tools/dev/train_fashion_classifier.py
$PY tools/make_reference.py --data=datasets/fashion-16-test.zip --dest=$ASSETS/fashion-reference.npz
