"""Bad luck on the host: nothing leaks, nothing sticks, and what should survive does."""

import concurrent.futures
import os
import signal
import threading
import time

import host
import httpx
import httpx_ws
import pytest
from wrenn import Capsule, WrennClient
from wrenn.exceptions import WrennError, WrennHostUnavailableError
from wrenn.models import Status


@pytest.fixture
def http():
    with WrennClient() as client:
        yield client.http if hasattr(client, "http") else client._http


@pytest.fixture
def nothing_leaks():
    before = host.holdings()
    yield
    assert host.settled(before) == {}


def gone(capsule_id: str, patience: float = 60) -> str:
    """The final status of a capsule that is on its way out."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        status = Capsule.get_info(capsule_id).status
        if status in (Status.stopped, Status.error):
            return status.value
        time.sleep(0.1)
    raise TimeoutError(f"{capsule_id} is still {status}")


def test_a_life_leaves_nothing_behind(nothing_leaks):
    with Capsule(wait=True) as made:
        assert made.commands.run("echo hi").stdout == "hi\n"
    assert gone(made.capsule_id) == "stopped"


def test_destroy_in_the_middle_of_create(http, nothing_leaks):
    ids = []
    for delay in (0.0, 0.05, 0.2, 0.5, 1.0, 2.0):
        before = {c.id for c in Capsule.list()}
        with concurrent.futures.ThreadPoolExecutor() as pool:
            creation = pool.submit(http.post, "/v1/capsules", json={})
            deadline = time.monotonic() + 20
            new = set()
            while not new and time.monotonic() < deadline:
                new = {c.id for c in Capsule.list()} - before
            time.sleep(delay)
            (made,) = new
            Capsule.destroy(made)
            ids.append(made)
            assert creation.result().status_code in (201, 202, 409, 502)
    assert {gone(i) for i in ids} <= {"stopped"}


def test_two_destroys_at_once_both_succeed(http, nothing_leaks):
    made = Capsule(wait=True)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda _: http.delete(f"/v1/capsules/{made.capsule_id}").status_code, range(4)))
    assert set(answers) <= {202, 204}
    assert gone(made.capsule_id) == "stopped"


def test_a_guest_that_panics_is_noticed_and_removed(nothing_leaks):
    made = Capsule(wait=True)
    made.commands.run("echo 1 > /proc/sys/kernel/sysrq; (sleep 0.2; echo c > /proc/sysrq-trigger) >/dev/null 2>&1 &")
    assert gone(made.capsule_id) == "stopped"


def test_a_vmm_that_is_killed_is_noticed_and_removed(nothing_leaks):
    made = Capsule(wait=True)
    pid = host.vmm_of(made.capsule_id)
    os.kill(pid, signal.SIGKILL)
    assert gone(made.capsule_id) == "stopped"


def test_clients_that_vanish_in_the_middle_of_a_stream(capsule, http):
    path = f"/v1/capsules/{capsule.capsule_id}"
    capsule.commands.run("dd if=/dev/zero of=/var/tmp/half bs=1M count=64 2>/dev/null")
    with http.stream("POST", f"{path}/files/stream/read", json={"path": "/var/tmp/half"}) as answer:
        next(answer.iter_raw())

    def broken_upload():
        yield b'--b\r\nContent-Disposition: form-data; name="path"\r\n\r\n/var/tmp/broken\r\n--b\r\n'
        yield b'Content-Disposition: form-data; name="file"; filename="x"\r\n\r\n' + b"x" * 100_000
        raise ConnectionError("the client is gone")

    with pytest.raises(ConnectionError):
        http.post(
            f"{path}/files/stream/write",
            content=broken_upload(),
            headers={"Content-Type": "multipart/form-data; boundary=b"},
        )
    with httpx_ws.connect_ws(f"{path}/exec/stream", http) as ws:
        ws.send_text('{"type":"start","cmd":"/bin/sh","args":["-c","exec sleep 4321"]}')
        ws.receive_json()
    deadline = time.monotonic() + 20
    while "sleep" in capsule.commands.run("ps -eo comm,args | grep -c '^sleep.*4321' >/dev/null && echo sleep").stdout:
        assert time.monotonic() < deadline, "the process of a vanished client runs on"
        time.sleep(0.2)
    assert capsule.commands.run("echo alive").stdout == "alive\n"


def test_a_full_disk_is_told_and_passes():
    with Capsule(wait=True) as made:
        made.commands.run("fallocate -l 100G /fill 2>/dev/null; dd if=/dev/zero of=/fill2 bs=1M 2>/dev/null; sync", timeout=200)
        with pytest.raises(WrennError) as caught:
            made.files.write("/full", b"x" * 5_000_000)
        assert caught.value.status_code == 507
        assert caught.value.code == "agent_error"
        made.commands.run("rm -f /fill /fill2")
        made.files.write("/full", b"x" * 5_000_000)
        assert made.commands.run("stat -c %s /full").stdout == "5000000\n"


def test_capsules_outlive_their_agent():
    with Capsule(wait=True) as made:
        handle = made.commands.run("while :; do date +%s; sleep 0.2; done", background=True)
        with made.pty(cmd="/bin/sh") as term:
            for event in term:
                if event.type == "started":
                    break
            host.replace("agent", signal.SIGKILL)
            deadline = time.monotonic() + 20
            while True:
                try:
                    assert made.commands.run("echo still here").stdout == "still here\n"
                    break
                except WrennError:
                    assert time.monotonic() < deadline, "the capsule was not taken over"
                    time.sleep(0.05)
            assert handle.pid in [p.pid for p in made.commands.list()]
            made.files.write("/tmp/after", "written")
            with made.pty_connect(term.tag) as again:
                again.write(b"echo $((6 * 7))\n")
                seen = b""
                for event in again:
                    seen += event.data if event.type == "output" else b""
                    if b"42" in seen:
                        break
        assert made.files.read("/tmp/after") == "written"


def test_an_agent_that_dies_with_its_vms_is_cleaned_up_after(nothing_leaks):
    made = Capsule(wait=True)
    pid = host.vmm_of(made.capsule_id)
    agent = host.child("agent")
    os.kill(agent, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    os.kill(agent, signal.SIGKILL)
    host.wait_for_another("agent", agent)
    assert gone(made.capsule_id, patience=180) == "stopped"


def test_a_database_restart_under_load_loses_nothing(capsule):
    stop = threading.Event()
    odd = []

    def load():
        while not stop.is_set():
            try:
                if capsule.commands.run("echo ok").stdout != "ok\n":
                    odd.append("wrong output")
            except WrennHostUnavailableError:
                time.sleep(0.05)
            except (WrennError, httpx.HTTPError) as error:
                odd.append(repr(error))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    host.replace("postgres", signal.SIGINT)
    deadline = time.monotonic() + 60
    while True:
        try:
            Capsule.list()
            break
        except WrennError:
            assert time.monotonic() < deadline, "the API did not recover"
            time.sleep(0.1)
    time.sleep(1)
    stop.set()
    for thread in threads:
        thread.join()
    assert odd == []


def test_a_control_plane_that_dies_forgets_nothing(capsule):
    host.replace("control-plane", signal.SIGKILL)
    deadline = time.monotonic() + 60
    while True:
        try:
            assert capsule.commands.run("echo back").stdout == "back\n"
            break
        except (WrennError, httpx.HTTPError):
            assert time.monotonic() < deadline, "the control plane did not come back"
            time.sleep(0.1)
