"""Sums up cubecl's log of profiled launches by kernel: `hottest.py LOG [ROWS]`."""

import collections
import re
import sys

UNITS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "us": 1e-6, "ns": 1e-9}


def main():
    rows = int(sys.argv[2]) if len(sys.argv) > 2 else 8
    seconds, launches = collections.Counter(), collections.Counter()
    with open(sys.argv[1], encoding="utf-8", errors="replace") as log:
        for line in log:
            # `| 12.5µs     | name of the kernel`, wherever the logger puts its own prefix.
            found = re.search(r"\| ([\d.]+)(s|ms|µs|us|ns) *\| (.+)", line)
            if found:
                name = found[3].strip()
                seconds[name] += float(found[1]) * UNITS[found[2]]
                launches[name] += 1
    total = sum(seconds.values())
    print(f"{sum(launches.values())} launches, {total:.3f} s")
    for name, taken in seconds.most_common(rows):
        print(f"{taken:8.3f} s  {100 * taken / total:5.1f} %  {launches[name]:7}  {name[:140]}")


main()
