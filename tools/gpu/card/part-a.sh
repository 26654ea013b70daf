#!/bin/bash
# Part A, at most 5 minutes: is it right? Golden cases in f32 and bf16. In the repository's root:
#     bash tools/gpu/card/part-a.sh
part=a part_s=290
. "$(dirname "$0")/setup.sh"

if [ -z "$rehearsal" ]; then
    step machine 20 bash -c 'date -u; nvidia-smi; nproc; free -g; df -h /dev/shm /tmp; python3 -c "import torch; print(torch.__version__, torch.cuda.nccl.version())"'
    tell machine < "$logs/machine.log"
fi

# On the double nothing is computed, so that here tests may only run, not pass.
export RETOUCH_TEST_DEVICE=cuda:0
step golden 250 "$work/bin/parity" --nocapture --test-threads 4
grep -E '^test |^[a-z0-9_]+ .*__|test result' "$logs/golden.log" | cut -c1-160 | tell 'golden cases'
