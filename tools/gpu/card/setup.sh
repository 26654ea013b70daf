# Sourced by both parts, in the repository's root, on a machine with a card (or on the driver double, with REHEARSAL=1).
#
# Everything is there already or comes with `cargo xtask gpu pack`: no network. Results land in $OUT after every step:
# results.md, and all logs in logs.tgz.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$PWD
pack=${PACK:-$root/target/gpu/card}
OUT=${OUT:-$root/target/gpu/card-out}
work=${WORK:-/tmp/retouch-card}
logs=$work/logs
mkdir -p "$OUT" "$logs" "$work/bin"
rehearsal=${REHEARSAL:-}

# Programs, as far as this part carries them.
for packed in "$pack/$part"/*.xz; do
    name=$(basename "$packed" .xz)
    [ -x "$work/bin/$name" ] || { python3 -c "
import lzma, shutil, sys
with lzma.open(sys.argv[1]) as packed, open(sys.argv[2], 'wb') as out:
    shutil.copyfileobj(packed, out, 1 << 22)" "$packed" "$work/bin/$name" && chmod +x "$work/bin/$name"; } &
done
wait

# Tests find their data below the folder that they were built in.
built_in=$(cat "$pack/common/built-in")
if [ ! -e "$built_in" ]; then
    mkdir -p "$(dirname "$built_in")" && ln -s "$root" "$built_in"
fi

export RUST_BACKTRACE=1 NCCL_SOCKET_IFNAME=lo RETOUCH_CACHE=$work/cache
if [ -z "$rehearsal" ]; then
    # cubecl links libdevice from below CUDA_PATH; a bare machine has none.
    export CUDA_PATH=$pack/common/cuda
    # NCCL is torch's. The driver's folder is not always known to the loader.
    RETOUCH_NCCL=$(python3 -c "
import os, nvidia.nccl
print(os.path.join(list(nvidia.nccl.__path__)[0], 'lib/libnccl.so.2'))" 2> /dev/null) && export RETOUCH_NCCL
    if ! ldconfig -p | grep -q 'libcuda\.so\.1'; then
        driver=$(find /usr/local/nvidia /usr/lib /usr/local -name libcuda.so.1 2> /dev/null | head -n 1)
        export LD_LIBRARY_PATH=$(dirname "$driver")
    fi
fi

details=$work/details-$part.md
: > "$details"
steps=$work/steps-$part.md
printf '| step | exit code | seconds |\n|---|---|---|\n' > "$steps"

# What is written so far, whole after every step.
publish() {
    { echo "## Part $part"; echo; cat "$steps"; echo; cat "$details"; } > "$OUT/results-$part.md"
    tar czf "$OUT/logs-$part.tgz" -C "$work" logs
}

# step NAME SECONDS COMMAND...: bounded, its output in a log; the next step runs however it ends.
ends=$(($(date +%s) + part_s))
step() {
    local name=$1 limit=$2 left=$((ends - $(date +%s))) begin code seconds
    shift 2
    if [ $left -lt 10 ]; then skip "$name" "no time is left of $part_s s"; return; fi
    [ "$limit" -le $left ] || limit=$left
    begin=$(date +%s%N)
    timeout -k 5 "$limit" "$@" > "$logs/$name.log" 2>&1
    code=$?
    seconds=$(awk -v ns=$(($(date +%s%N) - begin)) 'BEGIN {printf "%.1f", ns / 1e9}')
    [ $code -eq 124 ] && code="124 (stopped after $limit s)"
    printf '| %s | %s | %s |\n' "$name" "$code" "$seconds" >> "$steps"
    echo "$name: exit code $code, $seconds s"
    publish
}

# skip NAME WHY
skip() {
    printf '| %s | skipped: %s | |\n' "$1" "$2" >> "$steps"
    echo "$1: skipped: $2"
    publish
}

# tell TITLE < TEXT: under the table.
tell() {
    { echo "### $1"; echo; echo '```'; cat; echo '```'; echo; } | tee -a "$details"
    publish
}

# Memory and use of the card while a step runs, five times a second: `watch NAME`, then `unwatch`.
watch() {
    watched=$1
    if [ -n "$rehearsal" ]; then
        export RETOUCH_DOUBLE_DIR=$work/double/$watched
        rm -rf "$RETOUCH_DOUBLE_DIR"; mkdir -p "$RETOUCH_DOUBLE_DIR"
        return
    fi
    nvidia-smi --query-gpu=memory.used,utilization.gpu,power.draw --format=csv,noheader,nounits -lms 200 \
        > "$logs/$watched.card.csv" 2> /dev/null &
    watcher=$!
}
unwatch() {
    if [ -n "$rehearsal" ]; then
        python3 - "$RETOUCH_DOUBLE_DIR" <<'PYTHON'
import glob, json, sys
reports = [json.load(open(path)) for path in glob.glob(sys.argv[1] + "/*.json")]
peak = max((d["card_bytes_peak"] for r in reports for d in r["devices"]), default=0)
print(f"  {peak / 2**30:.2f} GiB at most, {sum(r['launches'] for r in reports)} launches (driver double)")
PYTHON
        return
    fi
    kill "$watcher" 2> /dev/null
    wait "$watcher" 2> /dev/null
    awk -F, '{ if ($1 + 0 > peak) peak = $1; if ($2 > 5) { use += $2; power += $3; n++ } }
        END { printf "  %.2f GiB at most; while it worked %.0f %% in use, %.0f W\n", peak / 1024, n ? use / n : 0, n ? power / n : 0 }' \
        "$logs/$watched.card.csv"
}
