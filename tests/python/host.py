"""The machine beneath the platform: what a capsule may hold on it, and how to hurt its parts."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

CGROUP_ROOTS = [Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")]
WRENN_DIR = Path(os.environ.get("WRENN_DIR", "/var/lib/wrenn"))


def holdings() -> dict[str, set]:
    """Everything that capsules of this installation hold on the machine, by kind."""
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    routes = subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout
    spare = spares()
    foreign = foreign_slots() | spare["slots"]
    devices = {line.split(": ")[1].split("@")[0] for line in links.splitlines()}
    return {
        "namespaces": names("/run/netns", "wrenn-") - {f"wrenn-{slot}" for slot in foreign},
        "slots": names("/run/wrenn/slots", "") - foreign,
        "links": {name for name in devices if name.startswith("wrenn-")} - {f"wrenn-{slot}" for slot in foreign},
        "routes": {line for line in routes.splitlines() if line.startswith("10.11.") and not foreign & set(re.findall(r"wrenn-(\d+)", line))},
        "processes": {pid for pid, _ in vmms()} - spare["processes"],
        "block devices": block_devices(spare["machines"]),
        "cgroups": {
            path.name for root in CGROUP_ROOTS for path in root.glob(f"wrenn-{installation()}/*/")
        } - spare["cgroups"],
        "directories": names(WRENN_DIR / "capsules", "") - spare["directories"],
        "rows": rows(),
    }


def spares() -> dict[str, set]:
    """What machines hold that are ready for the next creates, or are being made so: they belong to no template by name."""
    found = {"slots": set(), "processes": set(), "directories": set(), "cgroups": set(), "machines": set()}
    for path in (WRENN_DIR / "capsules").glob("*/capsule.json"):
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if record["spec"]["template_name"] == "":
            found["directories"].add(path.parent.name)
            found["cgroups"].add((record["machine"] or {}).get("id"))
            found["machines"].add((record["machine"] or {"id": path.parent.name})["id"])
            found["slots"].add(str(record["slot"]))
            found["processes"].add((record["machine"] or {}).get("pid"))
    return found


def block_devices(machines: set[str]) -> set[str]:
    """Loop devices in use and this installation's devices of the device mapper, without those of these machines alone."""
    def owners(block: Path) -> set[str]:
        name = block / "dm" / "name"
        if name.exists():
            return {name.read_text().strip()}
        return set().union(*(owners(holder) for holder in (block / "holders").iterdir()))

    prefix = "wrenn-" + installation().replace("-", "")[:12]
    found = set()
    for block in Path("/sys/block").iterdir():
        try:
            names = owners(block)
            if block.name.startswith("loop") and not (block / "loop").exists():
                continue
            if block.name.startswith("dm-") and not any(name.startswith(prefix) for name in names):
                continue
        except OSError:
            continue
        if block.name.startswith(("loop", "dm-")) and not (names and all(any(id in name for id in machines) for name in names)):
            found.add(block.name)
    return found


def rows() -> set[str]:
    """Rows of capsules that have not ended, and how many rows every other table has."""
    sql = """
        SELECT 'capsule ' || id FROM capsules WHERE status NOT IN ('stopped', 'error')
        UNION ALL SELECT 'teams ' || count(*) FROM teams
        UNION ALL SELECT 'api_keys ' || count(*) FROM api_keys
        UNION ALL SELECT 'templates ' || count(*) FROM templates
        UNION ALL SELECT 'hosts ' || count(*) FROM hosts
        UNION ALL SELECT 'host_tokens ' || count(*) FROM host_tokens
    """
    for _ in range(100):
        command = ["psql", "-h", WRENN_DIR / "postgres" / "socket", "-U", "postgres", "-Atc", sql, "wrenn"]
        asked = subprocess.run(command, capture_output=True, text=True)
        if asked.returncode == 0:
            return set(asked.stdout.splitlines())
        # Some of these tests restart the database.
        time.sleep(0.2)
    raise RuntimeError(f"the database does not answer: {asked.stderr}")


def foreign_slots() -> set[str]:
    """Slots that other installations on this machine have claimed."""
    found = set()
    for claim in Path("/run/wrenn/slots").glob("[0-9]*"):
        try:
            if json.loads(claim.read_text())["owner"] != installation():
                found.add(claim.name)
        except (OSError, ValueError):
            continue
    return found


def installation() -> str:
    return (WRENN_DIR / "installation-id").read_text().strip()


def names(directory, prefix: str) -> set[str]:
    path = Path(directory)
    return {p.name for p in path.iterdir() if p.name.startswith(prefix)} if path.is_dir() else set()


def vmms() -> list[tuple[int, str]]:
    """Process id and command line of every VMM of this installation."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                own = f"wrenn-{installation()}" in (entry / "cgroup").read_text()
            except OSError:
                continue
            if own and line.split(" ")[0].endswith(("qemu-system-x86_64", "firecracker")):
                found.append((int(entry.name), line))
    return found


def vmm_of(capsule_id: str) -> int:
    """Process id of a capsule's VMM."""
    record = json.loads((WRENN_DIR / "capsules" / capsule_id / "capsule.json").read_text())
    return record["machine"]["pid"]


def settled(before: dict[str, set], patience: float = 30) -> dict[str, set]:
    """What is held beyond `before`, once nothing more goes away; empty where nothing leaked."""
    deadline = time.monotonic() + patience
    while True:
        more = {kind: now - before[kind] for kind, now in holdings().items() if now - before[kind]}
        if not more or time.monotonic() > deadline:
            return more
        time.sleep(0.2)


def supervisor() -> int:
    return json.loads((WRENN_DIR / "run" / "up.json").read_text())["process"]["pid"]


def child(role: str) -> int:
    """Process id of a role that the supervisor runs: `agent`, `control-plane` or `postgres`."""
    parent = supervisor()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(stat.rpartition(")")[2].split()[1]) != parent:
            continue
        program = words[0].decode().rpartition("/")[2]
        if program == role or (len(words) > 1 and words[1].decode() == role):
            return int(entry.name)
    raise LookupError(f"the supervisor runs no {role}")


def replace(role: str, how: signal.Signals) -> None:
    """Ends a role and waits until the supervisor has started another."""
    old = child(role)
    os.kill(old, how)
    wait_for_another(role, old)


def wait_for_another(role: str, old: int) -> None:
    """Waits until the supervisor runs a role under another process id than `old`."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if child(role) != old:
                return
        except LookupError:
            pass
        time.sleep(0.05)
    raise TimeoutError(f"no new {role}")
