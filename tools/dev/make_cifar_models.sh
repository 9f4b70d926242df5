#!/usr/bin/env bash
# Makes data sets, a GAN and a teacher of CIFAR-10 at 16x16 in OUT, for tools/dev/cifar_study.py: about an hour on two
# CPU cores, GAN and teacher side by side. bash tools/dev/make_cifar_models.sh cifar-10-python.tar.gz [OUT]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

SOURCE=${1:?usage: bash tools/dev/make_cifar_models.sh cifar-10-python.tar.gz [OUT]}
OUT=${2:-datasets}
PY=${PY:-.venv/bin/python}

for split in train test; do
    suffix=$([[ $split == test ]] && echo -test || true)
    $PY tools/dataset_tool.py --source="$SOURCE" --split=$split --dest="$OUT/cifar10-32$suffix.zip"
    $PY tools/dataset_tool.py --source="$OUT/cifar10-32$suffix.zip" --transform=center-crop --resolution=16x16 \
        --dest="$OUT/cifar10-16$suffix.zip"
done

COMMON="--data=$OUT/cifar10-16.zip --cond=true --mirror=true --snap=10 --metrics=none --lr=2e-3 --device=cpu"
OMP_NUM_THREADS=1 $PY train.py --kind=gan $COMMON --batch=32 --kimg=400 --tick=5 --cbase=1024 --cmax=64 --w-dim=64 \
    --noise-inputs=false --mixing=0 --pl-weight=0 --aug=noaug --gamma=0.05 --ema=10 --outdir="$OUT/runs-gan" &
OMP_NUM_THREADS=1 $PY train.py --kind=edm $COMMON --batch=64 --kimg=640 --tick=8 --model-channels=32 \
    --channel-mult=1,2,2 --num-blocks=1 --attn-resolutions=8 --dropout=0 --label-dropout=0.1 --augment=0 \
    --lr-rampup=5 --lr-decay=0.5 --ema=5 --amp=bf16 --outdir="$OUT/runs-teacher"
wait

cp "$OUT"/runs-gan/*/network-snapshot-000400.pkl "$OUT/cifar10-16-gan.pkl"
cp "$OUT"/runs-teacher/*/network-snapshot-000640.pkl "$OUT/cifar10-16-teacher.pkl"
