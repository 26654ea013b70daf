"""One of gloo's ranks for `cargo bench --package retouch-learner --bench all_reduce`.

    gloo.py RANK WORLD STORE

Reads numbers of elements line by line; answers with the milliseconds of one all-reduce of as many f32.
"""

import sys
import time

import torch
import torch.distributed as dist


def main():
    rank, world, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    # One core each, as our ranks have.
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    for line in sys.stdin:
        values = torch.full((int(line),), 0.5)
        dist.barrier()
        begin = time.perf_counter()
        dist.all_reduce(values)
        time_ms = (time.perf_counter() - begin) * 1e3
        assert values[-1].item() == 0.5 * world
        print(time_ms, flush=True)


if __name__ == "__main__":
    main()
