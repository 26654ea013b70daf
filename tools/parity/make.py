"""Makes the golden cases under cases/ from the reference packages (requirements.txt).

    python tools/parity/make.py                    all cases
    python tools/parity/make.py flux_transformer   the cases of the named components

The bytes depend on the pinned packages and on the CPU's vector width, on nothing else.
"""

import os
import shutil
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

import common
import components


def main(names):
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    unknown = [name for name in names if name not in components.MAKERS]
    if unknown:
        sys.exit(f"unknown component {unknown[0]}, one of {', '.join(components.MAKERS)}")
    for name in names or components.MAKERS:
        given = components.GIVEN.get(name)
        if given and given not in os.environ:
            print(f"{name}: left as it is, {given} names no file")
            continue
        for folder in common.CASES.glob(f"{name}__*"):
            shutil.rmtree(folder)
        components.MAKERS[name]()
        for folder in sorted(common.CASES.glob(f"{name}__*")):
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            print(f"{folder.name}: {size / 1024:.0f} KiB")


if __name__ == "__main__":
    main(sys.argv[1:])
