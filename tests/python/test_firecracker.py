"""What only a platform with Firecracker has. It says itself what runs its capsules."""

import json

import pytest
from wrenn import Capsule


@pytest.fixture
def made():
    """Capsules of one test, gone after it."""
    capsules = []

    def make(**options):
        capsules.append(Capsule(**options))
        return capsules[-1]

    make.also = capsules.append
    yield make
    for capsule in capsules:
        capsule.destroy()


@pytest.fixture(scope="module", autouse=True)
def firecracker(capsule):
    vmm = vmm_of(capsule)
    if not vmm.startswith("firecracker "):
        pytest.skip(f"this platform's capsules are run by {vmm}")


def vmm_of(capsule) -> str:
    return Capsule.get_info(capsule.capsule_id).metadata["vmm_version"]


def out(capsule, line: str) -> str:
    result = capsule.commands.run(line, timeout=120)
    assert result.exit_code == 0, result
    return result.stdout.strip()


ASK = (
    "t=$(curl -sf -X PUT -H 'X-metadata-token-ttl-seconds: 60' http://169.254.169.254/latest/api/token) && "
    "curl -sf -H \"X-metadata-token: $t\" -H 'Accept: application/json' http://169.254.169.254/"
)


def test_a_guest_is_told_who_it_is(made):
    for _ in range(2):
        capsule = made(wait=True)
        assert json.loads(out(capsule, ASK)) == {"capsule_id": capsule.capsule_id, "template_id": "minimal"}


def test_several_cpus_go_on_after_a_pause(made):
    capsule = made(vcpus=2, memory_mb=512, wait=True)
    count = "for n in 1 2; do (while :; do echo >>/dev/shm/$n; sleep 0.05; done) >/dev/null 2>&1 & done"
    out(capsule, count)
    for _ in range(2):
        capsule.pause(wait=True)
        capsule.resume(wait=True)
        assert out(capsule, "nproc") == "2"
        moves = "for n in 1 2; do a=$(wc -l </dev/shm/$n); sleep 1; [ \"$(wc -l </dev/shm/$n)\" -gt \"$a\" ] || exit 1; done"
        out(capsule, moves)


def test_memory_behind_the_hole_for_devices_comes_back(made):
    """From 3 GiB on a guest has its memory in two pieces."""
    capsule = made(vcpus=1, memory_mb=4096)
    capsule.wait_ready(timeout=180)
    # The kernel gives out the upper piece first, and has itself in the lower one.
    out(capsule, "head -c 64M /dev/urandom >/dev/shm/last")
    before = out(capsule, "md5sum </dev/shm/last")
    capsule.pause(wait=True)
    capsule.resume(wait=True)
    assert out(capsule, "md5sum </dev/shm/last") == before
