"""The wire itself: what any client may send, and what it may count on, beyond what the published client does."""

import base64
import json
import os
import re
import socket
import struct
import time

import httpx
import pytest
import wsproto
from httpx_ws import WebSocketDisconnect, WebSocketNetworkError, connect_ws

BASE = os.environ.get("WRENN_BASE_URL", "").rstrip("/")
KEY = {"X-API-Key": os.environ.get("WRENN_API_KEY", "")}
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
UNKNOWN = "cl-" + "0" * 25


@pytest.fixture(scope="module")
def api():
    with httpx.Client(base_url=BASE, headers=KEY, timeout=120) as client:
        yield client


@pytest.fixture
def at(capsule):
    return f"/v1/capsules/{capsule.capsule_id}"


def code(response) -> tuple[int, str]:
    """Status and code of an answer that must be an error in the one form of errors."""
    error = response.json()["error"]
    assert error["message"]
    return response.status_code, error["code"]


def shell(api, at, script: str, **more) -> dict:
    answer = api.post(f"{at}/exec", json={"cmd": "/bin/sh", "args": ["-c", script], **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def form(*parts: tuple[str, bytes]) -> dict:
    body = b"".join(
        b'--B\r\nContent-Disposition: form-data; name="%s"; filename="x"\r\n\r\n%s\r\n' % (name.encode(), data)
        for name, data in parts
    )
    return {"content": body + b"--B--\r\n", "headers": {"content-type": "multipart/form-data; boundary=B"}}


def talk(path: str, *messages, headers=KEY) -> tuple[list[dict], int]:
    """Every message of a socket until its end, and the code it was closed with."""
    heard = []
    with connect_ws(BASE + path, headers=headers) as session:
        for message in messages:
            session.send_bytes(message) if isinstance(message, bytes) else session.send_json(message)
        try:
            while True:
                heard.append(session.receive_json(timeout=30))
        except WebSocketDisconnect as end:
            return heard, end.code


def test_every_error_has_the_one_form_and_a_request_id(api):
    for response, expected in [
        (api.get("/nothing/here"), (404, "not_found")),
        (api.get("/v1/capsules/"), (404, "not_found")),
        (api.put("/v1/capsules"), (405, "invalid_request")),
        (api.get(f"/v1/capsules/{UNKNOWN}"), (404, "not_found")),
        (api.get("/v1/capsules/cl-f5lxx1zz5pnorynqglhzmsp34"), (400, "invalid_request")),
        (api.post("/v1/capsules", json={"template": "a" * (4 << 20)}), (413, "too_large")),
        (httpx.get(f"{BASE}/v1/capsules"), (401, "unauthorized")),
        (httpx.get(f"{BASE}/v1/capsules", headers={"X-API-Key": "é".encode()}), (401, "unauthorized")),
        (httpx.get(f"{BASE}/v1/capsules?token={KEY['X-API-Key']}"), (401, "unauthorized")),
    ]:
        assert code(response) == expected
        assert response.headers["x-request-id"]
    assert api.get("/health", headers={"x-request-id": "mine"}).headers["x-request-id"] == "mine"


def test_the_prefix_is_optional_everywhere(api, at):
    assert api.get("/api/health").json() == api.get("/health").json()
    assert api.get(f"/api{at}").json()["id"] == api.get(at).json()["id"]
    assert talk(f"/api{at}/exec/stream", {"type": "start", "cmd": "true"})[0][-1]["exit_code"] == 0


def test_a_capsule_is_described_in_full(api, at):
    capsule = api.get(at).json()
    assert capsule["status"] == "running"
    assert isinstance(capsule["disk_used_mb"], int)
    for field in ("created_at", "last_updated", "started_at", "last_active_at"):
        assert TIMESTAMP.fullmatch(capsule[field]), field
    assert {"kernel_version", "vmm_version", "agent_version", "envd_version"} <= set(capsule["metadata"])
    listed = api.get("/v1/capsules").json()
    assert capsule["id"] in [entry["id"] for entry in listed]
    assert "disk_used_mb" not in listed[0]


@pytest.mark.parametrize(
    "body",
    [
        {"vcpus": "2"},
        {"vcpus": 1.5},
        {"memory_mb": 10**9},
        {"disk_size_mb": 1},
        {"disk_size_mb": 10**9},
        {"template": ".."},
        {"template": "a" * 65},
        {"metadata": {"a": 1}},
        {"metadata": {"a": None}},
        {"metadata": {"a b": ""}},
        {"metadata": {"a": "x" * 65}},
        {"metadata": {"envd_version": "1"}},
        {"metadata": {f"k{n}": "" for n in range(21)}},
        ["minimal", 1, 512, 0, 5120, {}],
        None,
    ],
    ids=repr,
)
def test_a_create_that_cannot_be_meant_is_invalid(api, body):
    assert code(api.post("/v1/capsules", json=body)) == (400, "invalid_request")


def test_broken_json_is_invalid(api, at):
    for raw in (b"", b"{", b'{"cmd":"\xff"}', b"[]", b'"x"', b'{"cmd":"true"} x'):
        for kind in ({}, {"content-type": "application/json"}):
            response = api.post(f"{at}/exec", content=raw, headers=kind)
            assert code(response) == (400, "invalid_request"), raw
    response = api.post(f"{at}/exec", content=b'{"cmd":"true"}', headers={"content-type": "text/plain"})
    assert code(response) == (400, "invalid_request")


def test_null_zero_and_unknown_fields_take_defaults(api, at):
    body = {"cmd": "pwd", "args": None, "envs": None, "cwd": "", "timeout_sec": -1, "tag": None, "odd": [1]}
    answer = api.post(f"{at}/exec", json=body).json()
    assert (answer["stdout"], answer["exit_code"], answer["encoding"]) == ("/root\n", 0, "utf-8")
    longest = api.post(f"{at}/exec", json={"cmd": "true", "timeout_sec": 2**63 - 1})
    assert longest.status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"cmd": ""},
        {"cmd": 5},
        {"cmd": "true", "args": "x"},
        {"cmd": "true", "args": ["a\0b"]},
        {"cmd": "true", "envs": {"A=B": "1"}},
        {"cmd": "true", "envs": {"A": 1}},
        {"cmd": "true", "cwd": "/no/such/place"},
        {"cmd": "no-such-program", "background": True},
    ],
    ids=repr,
)
def test_an_exec_that_cannot_be_meant_is_invalid(api, at, body):
    assert code(api.post(f"{at}/exec", json=body)) == (400, "invalid_request")


def test_exec_tells_how_a_command_ended(api, at):
    assert api.post(f"{at}/exec", json={"cmd": "no-such-program"}).json()["exit_code"] == 127
    assert shell(api, at, "kill -TERM $$")["exit_code"] == -1
    both = shell(api, at, r"printf '\377'; echo text >&2")
    assert both["encoding"] == "base64"
    assert base64.b64decode(both["stdout"]) == b"\xff"
    assert base64.b64decode(both["stderr"]) == b"text\n"
    assert api.post(f"{at}/exec", json={"cmd": "cat"}).json()["stdout"] == ""
    # An emulated guest takes its time to write more than an answer may have.
    flood = api.post(f"{at}/exec", json={"cmd": "yes", "timeout_sec": 600}, timeout=600)
    assert code(flood) == (502, "agent_error")


def test_background_processes_are_listed_and_killed_by_pid_and_tag(api, at):
    def start(**more):
        answer = api.post(f"{at}/exec", json={"cmd": "sleep", "args": ["600"], "background": True, **more})
        assert answer.status_code == 202
        return answer.json()

    plain, tagged = start(), start(tag="a/b ü")
    assert re.fullmatch("proc-[0-9a-f]{8}", plain["tag"])
    listed = {p["pid"]: p for p in api.get(f"{at}/processes").json()["processes"]}
    assert listed[plain["pid"]]["args"] == ["600"]
    assert listed[tagged["pid"]]["tag"] == "a/b ü"
    assert api.delete(f"{at}/processes/{plain['pid']}").status_code == 204
    assert api.delete(f"{at}/processes/a%2Fb%20%C3%BC?signal=SIGTERM").status_code == 204
    deadline = time.monotonic() + 30
    while {plain["pid"], tagged["pid"]} & {p["pid"] for p in api.get(f"{at}/processes").json()["processes"]}:
        assert time.monotonic() < deadline
    for gone in (plain["pid"], 1, "no-such-tag", -1):
        assert code(api.delete(f"{at}/processes/{gone}")) == (404, "not_found")


def test_uploads_need_their_parts_in_order(api, at):
    for call in ("write", "stream/write"):
        url = f"{at}/files/{call}"
        path = ("path", b"/tmp/parts/new")
        for parts in ([("file", b"x"), path], [path], [("file", b"x")], [], [path, path, ("file", b"x")]):
            assert code(api.post(url, **form(*parts))) == (400, "invalid_request"), parts
        assert code(api.post(url, json={"path": "/tmp/x"})) == (400, "invalid_request")
        for bad in (b"", b"~other/x", b"/tmp/a\0b", b"/tmp/\xff"):
            assert code(api.post(url, **form(("path", bad), ("file", b"x")))) == (400, "invalid_request"), bad
        assert api.post(url, **form(path, ("file", b""), ("more", b"ignored"))).status_code == 204
    made = shell(api, at, "stat -c '%a %U %s' /tmp/parts /tmp/parts/new")["stdout"]
    assert re.fullmatch(r"755 root \d+\n644 root 0\n", made)


def test_overwriting_keeps_the_mode_and_takes_the_file_over(api, at):
    shell(api, at, "cd /tmp; echo something long > kept; chmod 600 kept; chown 1234 kept; ln -sf kept to-kept")
    answer = api.post(f"{at}/files/write", **form(("path", b"/tmp/to-kept"), ("file", b"new")))
    assert answer.status_code == 204
    assert shell(api, at, "stat -c '%a %u' /tmp/kept; cat /tmp/kept")["stdout"] == "600 0\nnew"


def test_the_limit_of_the_plain_upload_is_that_of_its_body(api, at):
    over = (100 << 20) + 1
    headers = {"content-type": "multipart/form-data; boundary=B", "content-length": str(over)}
    assert code(api.post(f"{at}/files/write", content=b"\0" * over, headers=headers)) == (413, "too_large")
    assert api.get("/health").status_code == 200


def test_files_that_the_kernel_makes_up_can_be_read(api, at):
    for path in ("/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled", "/proc/self/limits"):
        for call in ("read", "stream/read"):
            content = api.post(f"{at}/files/{call}", json={"path": path})
            assert content.status_code == 200
            assert content.text.endswith("\n"), (path, call)
            assert content.headers["content-type"] == "application/octet-stream"
    assert code(api.post(f"{at}/files/stream/read", json={"path": "/proc/kcore"})) == (413, "too_large")


def test_reading_what_is_no_file(api, at):
    shell(api, at, "cd /tmp; rm -rf odd; mkdir odd; cd odd; mkfifo pipe; ln -s loop loop; ln -s gone broken")
    for path, expected in {
        "/tmp/odd": (400, "invalid_request"),
        "/tmp/odd/pipe": (400, "invalid_request"),
        "/dev/zero": (400, "invalid_request"),
        "/tmp/odd/loop": (400, "invalid_request"),
        "/tmp/odd/broken": (404, "not_found"),
        "/tmp/odd/none": (404, "not_found"),
        "": (400, "invalid_request"),
        "~other": (400, "invalid_request"),
    }.items():
        for call in ("read", "stream/read"):
            assert code(api.post(f"{at}/files/{call}", json={"path": path})) == expected, path


def test_listings_show_every_name_and_kind(api, at):
    script = r'''
        rm -rf /tmp/odd; mkdir -p /tmp/odd/d/e; cd /tmp/odd
        : > zero; chown 4321:4321 zero; mknod c c 1 3
        ln -s /dev/null dev; ln -s gone broken; ln -s d link
        touch "$(printf 'a\nb')" "$(printf 'odd\377')"
    '''
    shell(api, at, script)
    entries = api.post(f"{at}/files/list", json={"path": "/tmp/odd"}).json()["entries"]
    found = {entry["name"]: entry for entry in entries}
    kinds = {name: entry["type"] for name, entry in found.items()}
    file, directory = "file", "directory"
    assert kinds == {
        "a\nb": file,
        "broken": "symlink",
        "c": file,
        "d": directory,
        "dev": file,
        "link": directory,
        "odd\ufffd": file,
        "zero": file,
    }
    assert (found["zero"]["owner"], found["zero"]["group"], found["zero"]["size"]) == ("4321", "4321", 0)
    assert (found["broken"]["mode"], found["broken"]["symlink_target"]) == (0, "/tmp/odd/broken")
    below = api.post(f"{at}/files/list", json={"path": "/tmp/odd/../odd/link", "depth": 9}).json()["entries"]
    assert [entry["path"] for entry in below] == ["/tmp/odd/../odd/link/e"]


def test_directories_are_made_once_and_removed_whole(api, at):
    make = lambda path: api.post(f"{at}/files/mkdir", json={"path": path})  # noqa: E731
    remove = lambda path: api.post(f"{at}/files/remove", json={"path": path})  # noqa: E731
    assert make("/tmp/made/a/b").json()["entry"]["path"] == "/tmp/made/a/b"
    assert code(make("/tmp/made/a/b")) == (409, "already_exists")
    shell(api, at, "echo x > /tmp/made/file; ln -s file /tmp/made/link")
    assert code(make("/tmp/made/file")) == (400, "invalid_request")
    assert code(make("/tmp/made/file/below")) == (400, "invalid_request")
    assert remove("/tmp/made/link").status_code == 204
    assert shell(api, at, "cat /tmp/made/file")["stdout"] == "x\n"
    for everything in ("/", "/..", "/tmp/..", ".."):
        assert code(remove(everything)) == (400, "invalid_request"), everything
    assert remove("/tmp/made").status_code == 204
    assert code(remove("/tmp/made")) == (404, "not_found")


def test_exec_streams_follow_their_protocol(at):
    path = f"{at}/exec/stream"
    start = lambda script, **more: {"type": "start", "cmd": "/bin/sh", "args": ["-c", script], **more}  # noqa: E731
    heard, closed = talk(path, {"type": "auth", "token": "x"}, start("echo $A; pwd; exit 3", envs={"A": "1"}, cwd="/tmp"))
    assert [m["type"] for m in heard][:: len(heard) - 1] == ["start", "exit"]
    assert "".join(m["data"] for m in heard if m["type"] == "stdout") == "1\n/tmp\n"
    assert (heard[-1]["exit_code"], closed) == (3, 1000)
    heard, closed = talk(path, start("sleep 600"), {"type": "bogus"}, b"odd", {"type": "stop"})
    assert (heard[-1], closed) == ({"type": "exit", "exit_code": -1}, 1000)
    assert talk(path, start("sleep 600", timeout_sec=1))[0][-1]["type"] == "error"
    for first in (b"bytes", {}, {"type": "stop"}, {"type": "start"}, [], start("true", envs={"A=B": ""}), start("a\0")):
        heard, closed = talk(path, first)
        assert [m["type"] for m in heard] == ["error"], first
        assert closed == 1000


def test_a_socket_that_proves_nothing_is_told_so(at):
    message = {"type": "auth", "token": "nobody's"}
    heard, closed = talk(f"{at}/exec/stream", message, headers={})
    assert (heard, closed) == ([{"type": "error", "data": "authentication failed"}], 1008)
    heard, closed = talk(f"{at}/pty", message, headers={"X-API-Key": "wrn_bad"})
    assert (heard[0]["fatal"], closed) == (True, 1008)
    heard, closed = talk(f"/v1/capsules/{UNKNOWN}/exec/stream", {"type": "start", "cmd": "true"})
    assert ([m["type"] for m in heard], closed) == (["error"], 1000)


def test_a_client_that_leaves_takes_its_command_along(api, at):
    with connect_ws(f"{BASE}{at}/exec/stream", headers=KEY) as session:
        session.send_json({"type": "start", "cmd": "sleep", "args": ["4321"]})
        assert session.receive_json(timeout=30)["type"] == "start"
    deadline = time.monotonic() + 30
    while shell(api, at, "pgrep -x sleep -a | grep -c ' 4321$' || true")["stdout"] != "0\n":
        assert time.monotonic() < deadline


@pytest.mark.parametrize("reads", [True, False])
def test_a_client_that_breaks_off_in_a_flood_takes_its_command_along(api, at, reads):
    for _ in range(5):
        with connect_ws(f"{BASE}{at}/exec/stream", headers=KEY, queue_size=1) as session:
            session.send_json({"type": "start", "cmd": "yes", "args": ["a flood"]})
            assert session.receive_json(timeout=30)["type"] == "start"
            begun = time.monotonic()
            while time.monotonic() < begun + 1.5:
                session.receive_json(timeout=30) if reads else time.sleep(0.1)
            # No farewell: the connection is reset under the session.
            plain = session.stream.get_extra_info("socket")
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            plain.close()
            with pytest.raises((WebSocketNetworkError, WebSocketDisconnect)):
                while True:
                    session.receive(timeout=30)
    deadline = time.monotonic() + 30
    while shell(api, at, "pgrep -c -x yes || true")["stdout"] != "0\n":
        assert time.monotonic() < deadline


def test_terminals_refuse_what_they_cannot_begin_with(at):
    for first in (b"bytes", {}, {"type": "kill"}, {"type": "connect"}, {"type": "connect", "tag": "pty-none"},
                  {"type": "start", "user": "nobody-of-that-name"}, {"type": "start", "cwd": "/no/such/place"}):
        heard, closed = talk(f"{at}/pty", first)
        assert [(m["type"], m.get("fatal")) for m in heard] == [("error", True)], first
        assert closed == 1000


def test_a_terminal_whose_output_nobody_reads_can_still_be_killed(api, at):
    with connect_ws(f"{BASE}{at}/pty", headers=KEY) as session:
        session.send_json({"type": "start", "cmd": "/usr/bin/yes"})
        pid = session.receive_json(timeout=30)["pid"]
        time.sleep(1)
        session.send_json({"type": "kill"})
        deadline = time.monotonic() + 30
        while pid in [p["pid"] for p in api.get(f"{at}/processes").json()["processes"]]:
            assert time.monotonic() < deadline
        # What was on its way still arrives, and the exit after it. The client's thread waits for room in its queue:
        # a socket left unread here would hold the interpreter at its end.
        said = []
        with pytest.raises(WebSocketDisconnect):
            while True:
                event = session.receive(timeout=30)
                if isinstance(event, wsproto.events.TextMessage):
                    said.append(json.loads(event.data)["type"])
        assert said[-1] == "exit"
