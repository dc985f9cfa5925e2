"""People, with real machines: what a person's token does, what is recorded of it, and what goes with a team."""

import os
import secrets
import subprocess
import time
from pathlib import Path

import httpx
import pytest

import host

BASE = os.environ["WRENN_BASE_URL"]
PROGRAM = os.environ.get("WRENN_PROGRAM", Path(__file__).parents[2] / "target/debug/wrenn")


class Person:
    """Somebody with an account of their own."""

    def __init__(self, *flags: str):
        self.email = f"{secrets.token_hex(6)}@example.com"
        self.password = secrets.token_hex(8)
        command = [PROGRAM, "admin", "create-user", self.email, *flags]
        subprocess.run(command, input=f"{self.password}\n", text=True, check=True, capture_output=True)
        self.http = httpx.Client(base_url=BASE, timeout=60)
        self.sign_in()

    def sign_in(self):
        body = {"email": self.email, "password": self.password}
        answer = self.http.post("/v1/auth/login", json=body)
        answer.raise_for_status()
        self.auth = answer.json()
        self.http.headers["Authorization"] = f"Bearer {self.auth['token']}"

    def audit(self, **filters) -> list[dict]:
        answer = self.http.get("/v1/audit-logs", params=filters)
        answer.raise_for_status()
        return answer.json()["items"]


@pytest.fixture
def person():
    made = Person()
    yield made
    made.http.request("DELETE", "/v1/me", json={"confirmation": made.email})


def eventually(check, seconds=60):
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if check():
            return
        time.sleep(0.2)
    raise AssertionError("it did not come to be")


def test_a_persons_token_does_what_a_key_does_and_all_of_it_is_recorded(person):
    made = person.http.post("/v1/capsules", json={})
    assert made.status_code in (201, 202), made.text
    path = f"/v1/capsules/{made.json()['id']}"
    eventually(lambda: person.http.get(path).json()["status"] == "running")
    ran = person.http.post(f"{path}/exec", json={"cmd": "/bin/sh", "args": ["-c", "echo $((6 * 7))"]})
    assert ran.json()["stdout"] == "42\n"
    for call in ("pause", "resume"):
        assert person.http.post(f"{path}/{call}").status_code in (200, 202)
        wanted = {"pause": "paused", "resume": "running"}[call]
        eventually(lambda: person.http.get(path).json()["status"] == wanted)
    # The same capsule is nothing to the machine's own team.
    with httpx.Client(base_url=BASE, headers={"X-API-Key": os.environ["WRENN_API_KEY"]}) as other:
        assert other.get(path).status_code == 404
    assert person.http.delete(path).status_code in (202, 204)
    eventually(lambda: person.http.get(path).json()["status"] == "stopped")
    deeds = [(entry["action"], entry["status"], entry["actor_id"]) for entry in person.audit(resource_type="sandbox")]
    me = person.auth["user_id"]
    assert deeds == [
        ("destroy", "warning", me),
        ("resume", "success", me),
        ("pause", "success", me),
        ("create", "success", me),
    ]


def test_a_deleted_account_takes_its_team_and_its_machines_along():
    before = host.holdings()
    person = Person()
    key = person.http.post("/v1/api-keys", json={"name": "ci"}).json()["key"]
    with httpx.Client(base_url=BASE, headers={"X-API-Key": key}, timeout=60) as program:
        made = program.post("/v1/capsules", json={})
        assert made.status_code in (201, 202), made.text
        path = f"/v1/capsules/{made.json()['id']}"
        eventually(lambda: program.get(path).json()["status"] == "running")
        gone = person.http.request("DELETE", "/v1/me", json={"confirmation": person.email.upper()})
        assert gone.status_code == 204, gone.text
        assert program.get(path).status_code == 401
    assert person.http.get("/v1/me").json()["error"]["code"] == "account_deactivated"

    # The team and the account stay as rows for a while.
    before["rows"] |= {row for row in host.rows() if not row.startswith("capsule ")}
    assert host.settled(before) == {}


def test_an_administrator_runs_a_capsule_of_the_platform():
    admin = Person("--admin")
    made = admin.http.post("/v1/admin/capsules", json={})
    assert made.status_code in (201, 202), made.text
    path = f"/v1/admin/capsules/{made.json()['id']}"
    eventually(lambda: admin.http.get(path).json()["status"] == "running")
    form = {"path": (None, "/root/word"), "file": ("word", b"kept")}
    assert admin.http.post(f"{path}/files/write", files=form).status_code == 204
    read = admin.http.post(f"{path}/files/read", json={"path": "/root/word"})
    assert read.content == b"kept"
    assert admin.http.delete(path).status_code in (202, 204)
    log = admin.http.get("/v1/admin/audit-logs", params={"resource_type": "sandbox"}).json()["items"]
    eventually(lambda: admin.http.get(path).json()["status"] == "stopped")
    assert log[-1]["action"] == "create"
