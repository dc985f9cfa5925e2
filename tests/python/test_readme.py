"""The sections of the client's README run as printed. Files that the README presumes are put there first."""

import textwrap

import pytest
import readme
from wrenn import Capsule


def test_the_quick_start_prints_hello(capsys):
    readme.run(readme.blocks("Quick Start")[0])
    assert capsys.readouterr().out == "hello\n\n"


def test_command_execution(capsule, capsys):
    foreground = readme.blocks("Command Execution")[0]
    capsule.files.write("/app/train.py", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])")
    capsule.files.write("/root/server.py", "import time; time.sleep(30)")
    scope = readme.run(foreground, capsule=capsule)
    assert scope["result"].stdout == "0\n"
    assert scope["result"].exit_code == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "42"
    assert out[-2] == str(scope["handle"].pid)
    assert scope["handle"].tag
    capsule.commands.kill(scope["handle"].pid)


def test_streaming_output(capsule, capsys):
    block = next(b for b in readme.blocks("Command Execution") if "commands.stream" in b)
    script = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    capsule.files.write("/root/train.py", script)
    handle = capsule.commands.run("sleep 1; echo late", background=True)
    readme.run(block, capsule=capsule, handle=handle)
    captured = capsys.readouterr()
    assert captured.err == "err\n"
    assert "out\n" in captured.out
    assert "Exited with code 3" in captured.out
    assert captured.out.endswith("late\n")


def test_process_management(capsule, capsys):
    handle = capsule.commands.run("exec sleep 300", background=True)
    block = next(b for b in readme.blocks("Command Execution") if "commands.kill" in b)
    readme.run(block.replace("1234", str(handle.pid)), capsule=capsule)
    assert handle.tag in capsys.readouterr().out
    assert handle.pid not in [p.pid for p in capsule.commands.list()]


def test_filesystem(capsule):
    capsule.files.make_dir("/app/old_data")
    for block in readme.blocks("Filesystem"):
        scope = readme.run(block, capsule=capsule, process=lambda chunk: None)
        if "content" in scope:
            assert scope["content"] == "print('hello')"
            assert scope["raw"] == b"print('hello')"
    assert capsule.files.exists("/app/data")
    assert not capsule.files.exists("/app/old_data")
    assert capsule.files.read("/data/large.bin") == "chunk1chunk2"


def test_git(capsule):
    capsule.commands.run("rm -rf /app && mkdir /app && echo x > /app/file.txt")
    block = readme.blocks("Git")[0]
    scope = readme.run(block, capsule=capsule)
    assert scope["status"].branch == "main"
    assert scope["status"].is_clean
    names = [branch.name for branch in capsule.git.branches(cwd="/app")]
    assert names == ["main"]


def test_git_configuration_and_remotes(capsule):
    setup = """
    set -e
    rm -rf /app /origin.git && git init -q --bare -b main /origin.git && git init -q -b main /app && cd /app
    git config user.name Alice && git config user.email alice@example.com
    echo 1 > file.txt && git add . && git commit -qm one && echo 2 > file.txt && git commit -qam two
    git remote add origin /origin.git && git push -q origin main
    """
    assert capsule.commands.run(textwrap.dedent(setup)).exit_code == 0
    block = readme.blocks("Configuration and Remotes")[0]
    scope = readme.run(block, capsule=capsule)
    assert scope["value"] == "Alice"
    assert scope["url"] == "/origin.git"
    capsule.git.clone("/origin.git", "/copy")
    assert capsule.files.read("/copy/file.txt") == "2\n"


def test_the_pty_section(capsule, capfdbinary):
    block = readme.blocks("Interactive Terminal (PTY)")[0]
    # As printed, the loop waits for a shell that nobody ends; the same code ends it by typing `exit`.
    typed = block.replace('b"ls -la\\n"', 'b"echo $((40 + 2)) in $PWD\\nexit\\n"')
    head, reconnect = typed.split("# Reconnect")
    scope = readme.run(head, capsule=capsule)
    assert b"42 in /home/user" in capfdbinary.readouterr().out
    assert scope["term"].tag.startswith("pty-")
    assert "pty_connect" in reconnect


def test_reconnecting_to_a_pty(capsule):
    with capsule.pty(cmd="/bin/bash", cwd="/home/user") as term:
        for event in term:
            if event.type == "started":
                break
        with capsule.pty_connect(term.tag) as again:
            again.write(b"echo recon'n'ected\n")
            seen = b""
            for event in again:
                if event.type == "output":
                    seen += event.data
                if b"reconnected" in seen:
                    break
            assert again.pid == term.pid


@pytest.mark.parametrize("wait", [True, False])
def test_a_capsule_leaves_the_list_when_its_block_ends(wait):
    with Capsule(template="minimal", wait=wait) as made:
        made.wait_ready()
        assert made.is_running()
        assert made.capsule_id in [c.id for c in Capsule.list()]
        made.ping()
    assert made.capsule_id not in [c.id for c in Capsule.list()]
