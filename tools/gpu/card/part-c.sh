#!/bin/bash
# Part C, at most 1 minute: NCCL with one rank, by the learner's own tests. In the repository's root:
#     bash tools/gpu/card/part-c.sh
part=c part_s=60
. "$(dirname "$0")/setup.sh"

echo "NCCL: ${RETOUCH_NCCL:-not found}" | tell library
step nccl 50 "$work/bin/learner" nccl --nocapture --test-threads 1
grep -E '^test |test result' "$logs/nccl.log" | tell NCCL
