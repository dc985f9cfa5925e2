#!/usr/bin/env bash
# The command line as people use it, against the running platform of $WRENN_DIR. Prints one line for each check.
set -euo pipefail
wrenn=$1
work=$(mktemp -d)
passed=0
id=

cleanup() {
  [ -z "$id" ] || "$wrenn" capsule rm "$id" >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap cleanup EXIT

fail() { echo "FAILED: $*" >&2; exit 1; }
ok() { passed=$((passed + 1)); echo "ok: $*"; }
equals() { # equals WHAT WANTED FOUND
  [ "$2" = "$3" ] || fail "$1: wanted '$2', found '$3'"
  ok "$1"
}
code() { set +e; "$@" >/dev/null 2>&1; echo $?; set -e; }

equals "status of a running platform exits with 0" 0 "$(code "$wrenn" status)"
"$wrenn" doctor --json | python3 -c 'import json,sys; r = json.load(sys.stdin); assert all(c["level"] != "missing" for c in r["checks"]), r; assert r["settings"]'
ok "doctor finds nothing missing on a machine that runs"
equals "up on a running platform says so and succeeds" 0 "$(code "$wrenn" up --detach)"

id=$("$wrenn" capsule create -q -l purpose=cli)
[[ $id == cl-* ]] || fail "create prints an id, not '$id'"
ok "create prints the id"
equals "ls -q lists it" 1 "$("$wrenn" capsule ls -q | grep -cx "$id")"
equals "info tells its label" cli "$("$wrenn" capsule info "$id" --json | python3 -c 'import json,sys; print(json.load(sys.stdin)["metadata"]["purpose"])')"
equals "an abbreviated id is enough" hi "$("$wrenn" capsule exec "${id:0:14}" -- echo hi)"
equals "exec passes the exit code on" 42 "$(code "$wrenn" capsule exec "$id" -- sh -c 'exit 42')"
equals "exec keeps the streams apart" out "$("$wrenn" capsule exec "$id" -- sh -c 'echo out; echo err >&2' 2>/dev/null)"
equals "exec sets variables and directory" "b /tmp" "$("$wrenn" capsule exec -e A=b --cwd /tmp "$id" -- sh -c 'echo $A $PWD')"

head -c 3000000 /dev/urandom >"$work/in"
"$wrenn" capsule cp "$work/in" "$id:/tmp/in"
"$wrenn" capsule cp "$id:/tmp/in" "$work/out"
cmp "$work/in" "$work/out"
ok "cp brings a file back as it was"
mkdir -p "$work/tree/deep" && echo x >"$work/tree/deep/file"
"$wrenn" capsule cp "$work/tree" "$id:/tmp/tree"
equals "cp takes directories" x "$("$wrenn" capsule exec "$id" -- cat /tmp/tree/deep/file)"
equals "cp to standard output" x "$("$wrenn" capsule cp "$id:/tmp/tree/deep/file" -)"

process=$("$wrenn" capsule exec --background "$id" -- sh -c 'sleep 1; echo from the background' | awk '{print $1}')
equals "logs follows a background process" "from the background" "$("$wrenn" capsule logs "$id" "$process")"
[ -n "$("$wrenn" capsule logs "$id" 2>/dev/null || true)" ] && ok "logs shows the console" || ok "the console is empty"
equals "shell passes the exit code on" 7 "$(set +e; script -qec "'$wrenn' capsule shell '$id'" /dev/null <<<'exit 7' >/dev/null 2>&1; echo $?)"

"$wrenn" capsule exec "$id" -- sh -c 'echo kept >/dev/shm/word'
"$wrenn" capsule pause "$id" >/dev/null
equals "a paused capsule is listed as such" paused "$("$wrenn" capsule info "$id" --json | python3 -c 'import json,sys; print(json.load(sys.stdin)["status"])')"
equals "exec in a paused capsule fails" 125 "$(code "$wrenn" capsule exec "$id" -- true)"
"$wrenn" capsule resume "$id" >/dev/null
equals "a resumed capsule has its memory" kept "$("$wrenn" capsule exec "$id" -- cat /dev/shm/word)"
clones=$("$wrenn" capsule fork -q --count 2 "$id")
equals "fork prints an id for each copy" 2 "$(wc -l <<<"$clones")"
for clone in $clones; do
  equals "a copy has the memory of the original" kept "$("$wrenn" capsule exec "$clone" -- cat /dev/shm/word)"
  "$wrenn" capsule rm "$clone" >/dev/null
done
"$wrenn" template create "$id" --name cli-test >/dev/null
equals "a template is listed" 1 "$("$wrenn" template ls --type snapshot --json | python3 -c 'import json,sys; print(sum(t["name"] == "cli-test" for t in json.load(sys.stdin)))')"
copy=$("$wrenn" capsule create -q cli-test)
equals "a capsule of it begins where it was made" kept "$("$wrenn" capsule exec "$copy" -- cat /dev/shm/word)"
"$wrenn" template rm cli-test >/dev/null
equals "a removed template is gone" 1 "$(code "$wrenn" capsule create -q cli-test)"
equals "what was made of it is not" kept "$("$wrenn" capsule exec "$copy" -- cat /dev/shm/word)"
"$wrenn" capsule rm "$copy" >/dev/null

key=$("$wrenn" keys create cli-test)
equals "a new key works" "$id" "$(WRENN_API_KEY=$key "$wrenn" capsule ls -q | grep -x "$id")"
export WRENN_CREDENTIALS=$(mktemp -d)/credentials.json
email=cli-$$@example.com
"$wrenn" admin create-user "$email" --admin <<<"a long password" >/dev/null
equals "an account is made once" 1 "$(code "$wrenn" admin create-user "$email" <<<"a long password")"
equals "a wrong password is refused" 1 "$(code "$wrenn" login --email "$email" <<<"another one")"
env -u WRENN_API_KEY "$wrenn" login --email "$email" <<<"a long password" >/dev/null
equals "the credentials are their owner's alone" 600 "$(stat -c %a "$WRENN_CREDENTIALS")"
equals "whoami says who is signed in" "$email" "$("$wrenn" whoami --json | python3 -c 'import json,sys; print(json.load(sys.stdin)["email"])')"
equals "the first administrator owns the machine's team" owner "$("$wrenn" teams ls --json | python3 -c 'import json,sys; print(json.load(sys.stdin)[0]["role"])')"
equals "and sees what its key has made" "$id" "$(env -u WRENN_API_KEY "$wrenn" capsule ls -q | grep -x "$id")"
person_key=$("$wrenn" keys create from-a-person)
equals "the log names the maker of a key" "$email" "$("$wrenn" keys ls --json | python3 -c 'import json,sys; print(next(k["creator_email"] for k in json.load(sys.stdin) if k["name"] == "from-a-person"))')"
equals "the log has it" 1 "$("$wrenn" audit --resource-type api_key --limit 1 --json | grep -c from-a-person)"
equals "a person's key works" "$id" "$(WRENN_API_KEY=$person_key "$wrenn" capsule ls -q | grep -x "$id")"
equals "administrators list people" 1 "$("$wrenn" admin users ls --json | grep -c "$email")"
sleep 1.1 # a sign-in of the same second would still be good
"$wrenn" admin set-password "$email" <<<"another password"
equals "a new password ends the sign-ins of before" 1 "$(code "$wrenn" whoami)"
env -u WRENN_API_KEY "$wrenn" login --email "$email" <<<"another password" >/dev/null
"$wrenn" logout >/dev/null
equals "after a sign-out there is nobody" 1 "$(code "$wrenn" whoami)"
"$wrenn" admin secrets rotate
equals "the old key stays while somebody may still seal with it" 1 "$(code "$wrenn" admin secrets reseal)"
"$wrenn" completion bash | grep -q 'complete -F' || fail "completion"
ok "completion for bash"

"$wrenn" capsule rm "$id" >/dev/null
equals "rm removes it from the list" 0 "$("$wrenn" capsule ls -q | grep -cx "$id" || true)"
id=
equals "an unknown id is an error" 1 "$(code "$wrenn" capsule info "cl-$(printf '0%.0s' {1..25})")"

log=$WRENN_DIR/logs/wrenn.log
equals "a line of the log says which role wrote it" 0 "$(grep '^{' "$log" | grep -vc '^{"role":"[a-z-]*",' || true)"
mv "$log" "$log.1"
kill -HUP "$("$wrenn" status --json | python3 -c 'import json,sys; print(json.load(sys.stdin)["pid"])')"
for role in up control-plane agent; do
  for _ in $(seq 300); do grep -qs "\"role\":\"$role\".*anew" "$log" && break; sleep 0.1; done
  equals "after a SIGHUP the role $role logs to the new file, once" 1 "$(grep -c "\"role\":\"$role\".*anew" "$log")"
done
"$wrenn" capsule ls >/dev/null
equals "and nothing to the old one" 0 "$(grep -c anew "$log.1" || true)"

"$wrenn" down >/dev/null
"$wrenn" up --detach >/dev/null
equals "secrets are sealed with the new key" 0 "$(code "$wrenn" admin secrets reseal)"
equals "the keys of before are forgotten" 0 "$(grep -c old_secrets_keys "$WRENN_DIR/secrets.json")"
agent=${WRENN_AGENT_LISTEN:-127.0.0.1:8443}
equals "a platform that is up again has an agent that listens" 0 "$(code python3 -c 'import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])))' "${agent%:*}" "${agent##*:}")"
echo "$passed passed, 0 failed"
