# The trainings of gpu_models.sh and gpu_cifar.sh, which read this file: one that ends when its time is over.

train() { # NAME SECONDS OPTIONS...: trains on DEVICE, and takes the newest snapshot as OUT/NAME.pkl
    local name=$1 seconds=$2
    shift 2
    timeout --signal=INT --kill-after=20 "$seconds" $PY train.py --device="$DEVICE" --metrics=none --snap=1 \
        --outdir="$OUT/runs/$name" "$@" > "$OUT/$name.log" 2>&1 || true
    cp "$(ls "$OUT/runs/$name"/*/network-snapshot-*.pkl | tail -n 1)" "$OUT/$name.pkl"
    echo "$name: $(grep '^tick' "$OUT/$name.log" | tail -n 1)"
}
