"""Capsules that sleep, wake, multiply and become templates, through the published client and the public API."""

import asyncio
import concurrent.futures
import os
import time

import httpx
import httpx_ws
import pytest
from wrenn import AsyncCapsule, Capsule, WrennClient
from wrenn.exceptions import (
    WrennConflictError,
    WrennForbiddenError,
    WrennNotFoundError,
    WrennValidationError,
)
from wrenn.models import Status

KEY = {"X-API-Key": os.environ.get("WRENN_API_KEY", "")}
BASE = os.environ.get("WRENN_BASE_URL", "")


@pytest.fixture
def api():
    with httpx.Client(base_url=BASE, headers=KEY, timeout=60) as client:
        yield client


@pytest.fixture
def made():
    """Capsules of one test, gone after it."""
    capsules = []

    def make(**options):
        capsules.append(Capsule(wait=True, **options))
        return capsules[-1]

    make.also = lambda capsule_id: capsules.append(Capsule.connect(capsule_id)) or capsules[-1]
    yield make
    for capsule in capsules:
        try:
            capsule.destroy()
        except WrennNotFoundError:
            pass


@pytest.fixture
def client():
    with WrennClient() as made:
        yield made


def out(capsule, line: str) -> str:
    result = capsule.commands.run(line)
    assert result.exit_code == 0, result
    return result.stdout.strip()


def wait_for(capsule_id: str, status: Status, patience: float = 60):
    deadline = time.monotonic() + patience
    while (info := Capsule.get_info(capsule_id)).status != status:
        assert time.monotonic() < deadline, f"{capsule_id} is still {info.status}"
        time.sleep(0.1)
    return info


def test_pause_and_resume_keep_memory_processes_and_files(made):
    capsule = made()
    job = capsule.commands.run("while :; do echo >>/dev/shm/beats; sleep 0.05; done", background=True)
    out(capsule, "echo memory >/dev/shm/word; echo disk >/root/word; touch /dev/shm/beats")
    for round in range(3):
        before = int(out(capsule, "wc -l </dev/shm/beats"))
        assert capsule.pause(wait=True).status == Status.paused
        assert Capsule.get_info(capsule.capsule_id).status == Status.paused
        assert capsule.capsule_id in {c.id for c in Capsule.list()}
        assert capsule.resume(wait=True).status == Status.running
        assert out(capsule, "cat /dev/shm/word /root/word") == "memory\ndisk"
        assert int(out(capsule, "sleep 0.3; wc -l </dev/shm/beats")) > before
    assert job.pid in {p.pid for p in capsule.commands.list()}
    assert abs(int(out(capsule, "date +%s")) - time.time()) < 3


def test_each_call_by_state(api, made):
    capsule = made()
    at = f"/v1/capsules/{capsule.capsule_id}"
    assert (answer := api.post(f"{at}/resume")).status_code in (200, 202) and answer.json()["status"] == "running"
    assert (answer := api.post(f"{at}/pause")).status_code in (200, 202)
    wait_for(capsule.capsule_id, Status.paused)
    assert (answer := api.post(f"{at}/pause")).status_code in (200, 202) and answer.json()["status"] == "paused"
    calls = [
        ("POST", f"{at}/ping", None),
        ("POST", f"{at}/exec", {"cmd": "true"}),
        ("GET", f"{at}/processes", None),
        ("POST", f"{at}/files/list", {"path": "/", "depth": 1}),
        ("POST", f"{at}/files/read", {"path": "/etc/hostname"}),
        ("POST", f"{at}/fork", {"count": 1}),
    ]
    for method, path, body in calls:
        answer = api.request(method, path, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "invalid_state"), path
        assert "paused" in answer.json()["error"]["message"], path
    for path in ("pty", "exec/stream"):
        with httpx_ws.connect_ws(f"{BASE}{at}/{path}", headers=KEY) as socket:
            socket.send_json({"type": "start", "cmd": "/bin/sh"})
            assert socket.receive_json()["type"] == "error"
    info = api.get(at).json()
    assert info["status"] == "paused" and info["disk_size_mb"] == 5120 and 0 < info["disk_used_mb"] < 5120
    assert api.delete(at).status_code in (202, 204)
    wait_for(capsule.capsule_id, Status.stopped)
    for call in ("pause", "resume", "ping", "fork"):
        answer = api.post(f"{at}/{call}", json={} if call == "fork" else None)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "invalid_state"), call


def test_connect_wakes_a_paused_capsule(made):
    capsule = made()
    out(capsule, "echo kept >/dev/shm/x")
    capsule.pause(wait=True)
    again = Capsule.connect(capsule.capsule_id)
    assert out(again, "cat /dev/shm/x") == "kept"


def test_an_idle_capsule_is_paused_by_itself_and_a_ping_puts_that_off(api, made):
    capsule = made(timeout=60)
    info = Capsule.get_info(capsule.capsule_id)
    assert info.timeout_sec == 60
    time.sleep(40)
    api.post(f"/v1/capsules/{capsule.capsule_id}/ping").raise_for_status()
    time.sleep(30)
    assert Capsule.get_info(capsule.capsule_id).status == Status.running
    wait_for(capsule.capsule_id, Status.paused, 60)
    capsule.resume(wait=True)
    assert out(capsule, "echo awake") == "awake"


def test_a_terminal_survives_and_is_attached_again(made):
    capsule = made()
    with capsule.pty(cmd="/bin/sh") as terminal:
        terminal.write(b"KEPT=yes; echo re''ady\n")
        tag, seen = None, b""
        for event in terminal:
            tag = event.tag if event.type == "started" else tag
            seen += event.data if event.type == "output" else b""
            if b"ready" in seen:
                break
        capsule.pause(wait=True)
    capsule.resume(wait=True)
    with capsule.pty_connect(tag) as terminal:
        terminal.write(b"echo kept=$KEPT\n")
        seen = b""
        for event in terminal:
            seen += event.data if event.type == "output" else b""
            if b"kept=yes" in seen:
                break
    assert b"kept=yes" in seen


def test_forks_are_copies_with_lives_of_their_own(api, made):
    source = made()
    out(source, "echo before >/dev/shm/x; echo before >/root/x")
    answer = api.post(f"/v1/capsules/{source.capsule_id}/fork", json={"count": 3, "metadata": {"kind": "fork"}})
    assert answer.status_code in (201, 202), answer.text
    clones = [made.also(c["id"]) for c in answer.json()["capsules"]]
    assert len({c.capsule_id for c in [source, *clones]}) == 4
    for clone in clones:
        assert Capsule.get_info(clone.capsule_id).metadata["kind"] == "fork"
    everyone = [source, *clones]
    for number, capsule in enumerate(everyone):
        assert out(capsule, "cat /dev/shm/x /root/x") == "before\nbefore"
        out(capsule, f"echo {number} >/dev/shm/x; echo {number} >/root/x")
        assert out(capsule, "hostname; echo $WRENN_SANDBOX_ID") == f"{capsule.capsule_id}\n{capsule.capsule_id}"
        assert abs(int(out(capsule, "date +%s")) - time.time()) < 3
    assert [out(c, "cat /dev/shm/x /root/x") for c in everyone] == [f"{n}\n{n}" for n in range(4)]
    assert len({out(c, "head -c 32 /dev/urandom | od -An -tx1") for c in everyone}) == 4
    assert len({out(c, "cat /proc/sys/kernel/random/uuid") for c in everyone}) == 4


@pytest.mark.parametrize("body", [{"count": 0}, {"count": -1}, {"count": 101}, {"count": "x"}, {"metadata": {"a": 1}}])
def test_a_fork_that_cannot_be_meant(api, made, body):
    answer = api.post(f"/v1/capsules/{made().capsule_id}/fork", json=body)
    if body == {"count": 0}:
        assert answer.status_code in (201, 202), "zero takes the default"
        for clone in answer.json()["capsules"]:
            made.also(clone["id"])
        return
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


def test_snapshots_make_templates_that_outlive_their_source(client, made):
    source = made(memory_mb=256)
    out(source, "echo snap >/dev/shm/x; echo disk >/root/x")
    template = source.create_snapshot(name="py-live")
    assert (template.name, template.type.value) == ("py-live", "snapshot")
    assert out(source, "cat /dev/shm/x") == "snap"
    source.pause(wait=True)
    assert source.create_snapshot(name="py-paused").name == "py-paused"
    assert Capsule.get_info(source.capsule_id).status == Status.paused
    source.destroy()
    listed = {t.name: t for t in client.snapshots.list(type="snapshot")}
    for name in ("py-live", "py-paused"):
        assert (listed[name].vcpus, listed[name].memory_mb) == (1, 256)
        assert listed[name].size_bytes > 10 << 20 and not listed[name].platform
        copy = made(template=name, vcpus=4, memory_mb=1024)
        info = Capsule.get_info(copy.capsule_id)
        assert (info.vcpus, info.memory_mb, info.template) == (1, 256, name)
        assert out(copy, "cat /dev/shm/x /root/x") == "snap\ndisk"
        client.snapshots.delete(name)
        with pytest.raises(WrennNotFoundError):
            Capsule(template=name)
        copy.pause(wait=True)
        copy.resume(wait=True)
        assert out(copy, "cat /dev/shm/x /root/x") == "snap\ndisk"
    assert not {"py-live", "py-paused"} & {t.name for t in client.snapshots.list()}


def test_names_of_templates(client, made):
    source = made()
    automatic = source.create_snapshot()
    assert automatic.name.startswith("template-") and len(automatic.name) == len("template-") + 8
    out(source, "echo one >/dev/shm/x")
    source.create_snapshot(name="py-name")
    with pytest.raises(WrennConflictError):
        source.create_snapshot(name="py-name")
    out(source, "echo two >/dev/shm/x")
    source.create_snapshot(name="py-name", overwrite=True)
    assert out(made(template="py-name"), "cat /dev/shm/x") == "two"
    assert [t.name for t in client.snapshots.list()].count("py-name") == 1
    for bad in ("../x", "", " ", "-x", "x" * 65):
        if bad:
            with pytest.raises(WrennValidationError):
                source.create_snapshot(name=bad)
    for taken in ("minimal", "minimal-ubuntu"):
        with pytest.raises(WrennConflictError):
            source.create_snapshot(name=taken, overwrite=True)
        with pytest.raises((WrennForbiddenError, WrennNotFoundError)):
            client.snapshots.delete(taken)
    base = {t.name: t for t in client.snapshots.list(type="base")}
    assert base["minimal"].platform and base["minimal"].protected and "py-name" not in base
    assert client.snapshots.list(type="no-such-type") == []
    for name in ("py-name", automatic.name):
        client.snapshots.delete(name)
        with pytest.raises(WrennNotFoundError):
            client.snapshots.delete(name)


def test_disks_have_the_size_that_was_asked_for(api, made):
    answer = api.post("/v1/capsules", json={"disk_size_mb": 7168})
    capsule = made.also(answer.json()["id"])
    size = "for i in $(seq 50); do s=$(df -m / | awk 'END {print $2}'); [ $s -gt 6500 ] && break; sleep 0.2; done; echo $s"
    assert int(out(capsule, size)) > 6500
    at = f"/v1/capsules/{capsule.capsule_id}"
    used = api.get(at).json()["disk_used_mb"]
    out(capsule, "head -c 104857600 /dev/urandom >/root/big; sync")
    # What a block device has taken may reach the host's files up to half a minute later.
    deadline = time.monotonic() + 90
    while (grown := api.get(at).json()["disk_used_mb"]) < used + 100:
        assert time.monotonic() < deadline, (used, grown)
        time.sleep(0.5)
    assert api.get(at).json()["disk_size_mb"] == 7168


def test_the_loser_of_a_race_is_told_so(api, made):
    at = f"/v1/capsules/{made().capsule_id}"
    for call, end in (("pause", Status.paused), ("resume", Status.running)):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: api.post(f"{at}/{call}").status_code, range(8)))
        assert set(answers) <= {200, 202, 409} and set(answers) & {200, 202}, answers
        wait_for(at.rpartition("/")[2], end)


def test_destroy_wins_over_everything(api, made):
    for call in ("pause", "resume", "fork", "snapshot"):
        capsule = made()
        at = f"/v1/capsules/{capsule.capsule_id}"
        if call == "resume":
            capsule.pause(wait=True)
        path, body = (f"{at}/{call}", {} if call == "fork" else None)
        if call == "snapshot":
            path, body = "/v1/snapshots", {"sandbox_id": capsule.capsule_id, "name": "py-doomed"}
        with concurrent.futures.ThreadPoolExecutor() as pool:
            doomed = pool.submit(api.post, path, json=body)
            time.sleep(0.03)
            assert api.delete(at).status_code in (202, 204)
            answer = doomed.result()
        wait_for(capsule.capsule_id, Status.stopped)
        if call == "fork" and answer.status_code in (201, 202):
            for clone in answer.json()["capsules"]:
                Capsule.destroy(clone["id"])
    api.delete("/v1/snapshots/py-doomed")


def test_many_at_once(made):
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        capsules = list(pool.map(lambda _: made(memory_mb=256), range(10)))
        words = list(pool.map(lambda c: out(c, "echo $WRENN_SANDBOX_ID"), capsules))
    assert words == [c.capsule_id for c in capsules]
    assert len({out(c, "cat /proc/sys/kernel/random/uuid") for c in capsules}) == 10


def test_the_asynchronous_client_pauses_and_resumes():
    async def work():
        async with await AsyncCapsule.create(wait=True) as capsule:
            await capsule.commands.run("echo kept >/dev/shm/x")
            await capsule.pause(wait=True)
            await capsule.resume(wait=True)
            return (await capsule.commands.run("cat /dev/shm/x")).stdout

    assert asyncio.run(work()) == "kept\n"
