"""What a create, a pause and a resume take with one way of restoring memory: run once for each, inside the lab.

Prints medians in milliseconds. The times are those of an emulated CPU; what counts is how the two ways compare.
"""

import statistics
import sys
import time

from wrenn import Capsule

ROUNDS = 5
# MiB that the guest writes before the first pause, and MiB of memory that it has.
CASES = [(0, 512), (64, 512), (256, 1024)]


def timed(call) -> float:
    begun = time.monotonic()
    call()
    return (time.monotonic() - begun) * 1000


def report(title: str, taken: dict[str, list[float]]):
    cells = "  ".join(f"{name} {statistics.median(times):6.0f}" for name, times in taken.items())
    print(f"{sys.argv[1]:7} {title:17}  {cells}", flush=True)


def measure(written: int, memory: int):
    capsule = Capsule(vcpus=1, memory_mb=memory)
    capsule.wait_ready(timeout=180)
    capsule.commands.run(f"head -c {written}M /dev/urandom >/dev/shm/blob", timeout=300)
    taken: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        steps = {
            "pause": lambda: capsule.pause(wait=True),
            "resume": lambda: capsule.resume(wait=True),
            "first command": lambda: capsule.commands.run("true", timeout=120),
            "read it all": lambda: capsule.commands.run("cat /dev/shm/blob >/dev/null", timeout=300),
        }
        for name, call in steps.items():
            taken.setdefault(name, []).append(timed(call))
    capsule.destroy()
    report(f"{written} of {memory} MiB", taken)


def measure_creates():
    """Of the default shape, whose template was booted long ago: a restore of one that has no layers."""
    taken: dict[str, list[float]] = {"create": [], "first command": []}
    for _ in range(ROUNDS):
        begun = time.monotonic()
        capsule = Capsule()
        capsule.wait_ready(timeout=180)
        taken["create"].append((time.monotonic() - begun) * 1000)
        taken["first command"].append(timed(lambda: capsule.commands.run("true", timeout=120)))
        capsule.destroy()
    report("warm template", taken)


for written, memory in CASES:
    measure(written, memory)
measure_creates()
