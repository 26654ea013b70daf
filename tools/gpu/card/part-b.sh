#!/bin/bash
# Part B, at most 6 minutes: the program itself, then FLUX.1-Kontext's size beside torch. In the repository's root:
#     bash tools/gpu/card/part-b.sh
part=b part_s=350
. "$(dirname "$0")/setup.sh"
retouch=$work/bin/retouch
picture=assets/tiny/dataset/images/test_00000.png

# 24 GB of random weights, in memory where there is room, while the first steps run.
models=/dev/shm
[ "$(df -BG --output=avail /dev/shm | tail -n 1 | tr -dc 0-9)" -ge 40 ] || models=$work
flux=$models/retouch-flux
if [ -n "$rehearsal" ]; then make=(--layers 1); else make=(--random); fi
python3 tools/gpu/model_folder.py flux "$flux" "${make[@]}" > "$logs/model-folder.log" 2>&1 &
making=$!

step devices 20 "$retouch" devices
tell devices < "$logs/devices.log"

edit() { # DEVICE DTYPE
    step "edit-${1%:*}-$2" 45 "$retouch" edit --device "$1" --dtype "$2" --seed 1 --model assets/tiny/editor \
        -o "$OUT/edit-${1%:*}-$2.png" "$picture" "make it red"
}
for dtype in f32 bf16; do edit cuda:0 $dtype; edit cpu $dtype; done
if [ -z "$rehearsal" ]; then
    step edits-compared 20 python3 -c "
import numpy, PIL.Image
for dtype in 'f32', 'bf16':
    cuda, cpu = (numpy.asarray(PIL.Image.open(f'$OUT/edit-{d}-{dtype}.png').convert('RGB')).astype(float) for d in ('cuda', 'cpu'))
    off = abs(cuda - cpu)
    print(f'{dtype}: cuda and cpu differ by {off.mean():.3f} of 255 in the mean, {off.max():.0f} at most')"
    tell 'edits, cuda beside cpu' < "$logs/edits-compared.log"
fi

cat > "$work/flux.toml" <<TOML
name = "flux-size"
run_dir = "$work/flux-size"
iterations = 1
[model]
path = "$flux"
[dataset]
path = "$root/assets/tiny/dataset"
[rollout]
groups_per_iteration = 1
group_size = 3
[learner]
gradient_shards = 1
TOML
if ! wait $making; then tell 'the folder of weights failed' < "$logs/model-folder.log"; fi

nft_step() { # MICRO_BATCH
    watch "nft-step-$1"
    step "nft-step-$1" 110 "$retouch" launch "$work/flux.toml" --dry-run --set learner.device=cuda:0 --set "learner.micro_batch_size=$1"
    { unwatch; sed -n '/^work:/p; /^time:/,$p' "$logs/nft-step-$1.log"; } | tell "NFT step at FLUX size, micro batch $1"
}
flux_edit() { # STEPS
    step "flux-edit-$1" 60 "$retouch" edit --device cuda:0 --dtype bf16 --model "$flux" --height 512 --width 512 \
        --num-inference-steps "$1" -o "$OUT/flux.png" "$picture" "make it red"
}
torch_peer() { # BATCH OPTION...
    local batch=$1
    shift
    if [ -n "$rehearsal" ]; then skip "torch-$batch" 'there is no card'; return; fi
    step "torch-$batch" 70 python3 tools/gpu/torch_peer.py --batch "$batch" "$@"
    tell "torch, batch $batch" < "$logs/torch-$batch.log"
}

# The first is the cold start: nothing is tuned or compiled.
nft_step 1
torch_peer 1
watch flux-edit
flux_edit 2; flux_edit 12
{
    unwatch
    awk -F'|' '/flux-edit-2 /{few = $4} /flux-edit-12 /{many = $4} END {printf "forward: %.4f s, of edits with 2 and 12 steps\n", (many - few) / 10}' "$steps"
} | tell 'a frozen forward at FLUX size'
nft_step 3
torch_peer 3 --compile

# Every launch timed by cubecl itself, by events.
kernels=$logs/kernels.txt
step kernels 60 env CUBECL_DEBUG_LOG="$kernels" CUBECL_DEBUG_OPTION=profile "$retouch" launch "$work/flux.toml" --dry-run \
    --set learner.device=cuda:0 --set learner.micro_batch_size=3 --set rollout.num_inference_steps=2
python3 tools/gpu/card/hottest.py "$kernels" | tell 'the kernels that take longest, of an NFT step'
rm -f "$kernels"

all=(--set model.device=cuda:0 --set learner.device=cuda:0 --set reward.device=cuda:0)
watch smoke
step smoke 60 "$retouch" launch examples/smoke.toml --set run_dir="$work/smoke" --set learner.ranks=1 "${all[@]}"
{ unwatch; tail -n 8 "$logs/smoke.log"; } | tell 'the smoke run, all roles on cuda:0'
rm -rf "$flux"
