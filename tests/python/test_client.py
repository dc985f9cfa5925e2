"""What users of the client run into beyond its README: errors, odd bytes, big files, many things at once."""

import asyncio
import hashlib
import threading

import pytest
from wrenn import AsyncCapsule, Capsule
from wrenn.exceptions import (
    WrennAuthenticationError,
    WrennError,
    WrennNotFoundError,
    WrennValidationError,
)

UNKNOWN = "cl-" + "0" * 25


def test_unknown_things_are_not_found():
    with pytest.raises(WrennNotFoundError):
        Capsule(template="no-such-template")
    with pytest.raises(WrennNotFoundError):
        Capsule.get_info(UNKNOWN)


def test_malformed_ids_are_invalid():
    for bad in ("cl-abc", "xx-" + "0" * 25, "cl-" + "Z" * 25):
        with pytest.raises(WrennValidationError):
            Capsule.get_info(bad)


def test_a_bad_key_is_refused():
    with pytest.raises(WrennAuthenticationError):
        Capsule(api_key="wrn_" + "0" * 32)


def test_absurd_sizes_name_their_field():
    with pytest.raises(WrennValidationError, match="vcpus"):
        Capsule(vcpus=100_000)
    with pytest.raises(WrennValidationError, match="memory_mb"):
        Capsule(memory_mb=1)


def test_exit_codes_and_streams(capsule):
    result = capsule.commands.run("echo out; echo err >&2; exit 7")
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 7)
    assert capsule.commands.run("no-such-command").exit_code == 127
    assert capsule.commands.run("kill -9 $$").exit_code == -1


def test_environment_and_directory(capsule):
    result = capsule.commands.run("echo $HOME $USER $WRENN_SANDBOX_ID $A; pwd", envs={"A": "b c"}, cwd="/tmp")
    assert result.stdout == f"/root root {capsule.capsule_id} b c\n/tmp\n"
    with pytest.raises(WrennValidationError):
        capsule.commands.run("true", cwd="/no/such/directory")


def test_a_timeout_kills_the_whole_group(capsule):
    with pytest.raises(WrennError) as caught:
        capsule.commands.run("sleep 1234 & sleep 1234", timeout=1)
    assert caught.value.code == "timeout"
    assert capsule.commands.run("pgrep -f 'sleep 1234' | grep -v $$ | wc -l").stdout.strip() in ("0", "1")
    assert capsule.commands.run("ps -eo args | grep -c '^sleep 1234'").stdout.strip() == "0"


def test_binary_output_survives(capsule):
    result = capsule.commands.run(r"printf '\377\376ok'")
    assert result.stdout == b"\xff\xfeok".decode(errors="replace")
    data = bytes(range(256)) * 1000
    capsule.files.write("/tmp/bytes", data)
    assert capsule.files.read_bytes("/tmp/bytes") == data


def test_text_split_between_chunks_is_whole(capsule):
    script = r"for i in 1 2 3; do printf '\303'; sleep 0.1; printf '\251'; done"
    events = list(capsule.commands.stream(script))
    assert "".join(e.data for e in events if e.type == "stdout") == "ééé"
    assert events[-1].exit_code == 0


def test_file_errors(capsule):
    with pytest.raises(WrennNotFoundError):
        capsule.files.read("/no/such/file")
    with pytest.raises(WrennValidationError):
        capsule.files.read("/tmp")
    with pytest.raises(WrennValidationError):
        capsule.files.write("/tmp", "x")
    capsule.commands.run("mkfifo /tmp/fifo 2>/dev/null; echo x > /tmp/plain")
    with pytest.raises(WrennValidationError):
        capsule.files.write("/tmp/fifo", "x")
    with pytest.raises(WrennValidationError):
        capsule.files.read("/tmp/fifo")
    with pytest.raises(WrennValidationError):
        capsule.files.write("/tmp/plain/below", "x")
    with pytest.raises(WrennNotFoundError):
        capsule.files.remove("/no/such/file")
    with pytest.raises(WrennValidationError):
        capsule.files.list("/tmp/plain")


def test_listings_describe_every_kind(capsule):
    capsule.commands.run(
        "rm -rf /tmp/k && mkdir -p /tmp/k/dir/deep && cd /tmp/k && echo hi > file && chmod 640 file"
        " && ln -s file link && ln -s nowhere broken && mkfifo fifo"
    )
    entries = {e.name: e for e in capsule.files.list("/tmp/k")}
    kinds = {name: entry.type.value for name, entry in entries.items()}
    expected = {"dir": "directory", "file": "file", "link": "file", "broken": "symlink", "fifo": "file"}
    assert kinds == expected
    assert entries["file"].mode == 0o640
    assert entries["file"].permissions == "-rw-r-----"
    assert entries["link"].symlink_target == "/tmp/k/file"
    assert entries["link"].permissions.startswith("L")
    assert entries["fifo"].permissions.startswith("p")
    assert "/tmp/k/dir/deep" in [e.path for e in capsule.files.list("/tmp/k", depth=2)]


def test_a_large_file_goes_in_and_out_unharmed(capsule):
    block = hashlib.sha256(b"seed").digest() * 32768
    count = 64
    capsule.files.upload_stream("/var/tmp/large", (block for _ in range(count)))
    wanted = hashlib.sha256(block * count).hexdigest()
    assert capsule.commands.run("sha256sum /var/tmp/large", timeout=120).stdout.split()[0] == wanted
    digest = hashlib.sha256()
    for chunk in capsule.files.download_stream("/var/tmp/large"):
        digest.update(chunk)
    assert digest.hexdigest() == wanted
    capsule.files.remove("/var/tmp/large")


def test_output_flood_loses_nothing(capsule):
    events = capsule.commands.stream("seq 1 200000")
    text = "".join(e.data for e in events if e.type == "stdout")
    assert text == "".join(f"{n}\n" for n in range(1, 200001))


def test_several_watchers_of_one_process(capsule):
    handle = capsule.commands.run("sleep 1; seq 1 1000; sleep 0.2", background=True)
    seen = [None, None]

    def watch(index):
        events = capsule.commands.connect(handle.pid)
        seen[index] = "".join(e.data for e in events if e.type == "stdout")

    threads = [threading.Thread(target=watch, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen[0] == seen[1] == "".join(f"{n}\n" for n in range(1, 1001))


def test_pty_resize_and_exit_code(capsule):
    with capsule.pty(cmd="/bin/sh", cols=100, rows=40) as term:
        term.write(b"stty size\n")
        seen = b""
        for event in term:
            if event.type == "output":
                seen += event.data
            if b"40 100" in seen:
                break
        term.resize(120, 50)
        term.write(b"sleep 0.2; stty size; exit 5\n")
        code = None
        for event in term:
            if event.type == "output":
                seen += event.data
            if event.type == "exit":
                code = event.exit_code
        assert b"50 120" in seen
        assert code == 5


def test_a_pty_of_a_missing_directory_ends_with_a_fatal_error(capsule):
    with capsule.pty(cwd="/no/such/directory") as term:
        last = list(term)[-1]
        assert last.type == "error"
        assert last.fatal


def test_the_guest_reaches_names_but_not_the_host(capsule):
    assert capsule.commands.run("getent hosts deb.debian.org", timeout=60).exit_code == 0
    addresses = "10.11.0.2 10.12.0.2 192.168.0.1"
    if not Capsule.get_info(capsule.capsule_id).metadata["vmm_version"].startswith("firecracker "):
        # Firecracker answers there itself: nothing leaves the machine.
        addresses += " 169.254.169.254"
    refused = capsule.commands.run(
        f"for a in {addresses}; do"
        " timeout 3 bash -c \"echo > /dev/tcp/$a/80\" 2>/dev/null && echo reached $a; done; echo done",
        timeout=60,
    )
    assert refused.stdout == "done\n"


def test_the_async_client_runs_commands_side_by_side():
    async def work():
        async with await AsyncCapsule.create(template="minimal", wait=True) as made:
            results = await asyncio.gather(*(made.commands.run(f"sleep 1; echo {n}") for n in range(8)))
            assert [r.stdout for r in results] == [f"{n}\n" for n in range(8)]

    asyncio.run(work())


def test_destroy_can_be_repeated():
    made = Capsule(template="minimal")
    Capsule.destroy(made.capsule_id)
    Capsule.destroy(made.capsule_id)
    made.destroy(wait=True)
