#!/usr/bin/env bash
# Makes a virtual environment with the published client, pytest and the other programs of the tests at $1. The client needs Python 3.13, which Debian 12
# does not have: where no interpreter is found, one is taken from the next Debian's packages, unpacked beside it.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1

stamp=$(sha256sum tests/python/requirements.txt | cut -c1-16)
[ "$(cat "$venv/.stamp" 2>/dev/null)" != "$stamp" ] || exit 0

find_python() {
  for candidate in python3.13 python3.14 "$HOME"/.pyenv/versions/3.1[34]*/bin/python3; do
    if path=$(command -v "$candidate" 2>/dev/null) && "$path" -c 'import sys; sys.exit(sys.version_info < (3, 13))' 2>/dev/null; then
      echo "$path"
      return
    fi
  done
  return 1
}

# A root file system of Debian 13 with its Python, entered by a wrapper: the interpreter sees this machine's files.
unpack_python() {
  local root=$venv.root
  if [ ! -e "$root/usr/bin/python3.13" ]; then
    rm -rf "$root"
    mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,ca-certificates,iproute2,postgresql-client,util-linux trixie "$root" \
      "${WRENN_DEBIAN_MIRROR:-http://deb.debian.org/debian}"
  fi
  echo "$root"
}

rm -rf "$venv"
mkdir -p "$(dirname "$venv")"
if python=$(find_python); then
  "$python" -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/python/requirements.txt
else
  root=$(unpack_python)
  mkdir -p "$venv/bin"
  cat >"$venv/bin/enter" <<EOF
#!/usr/bin/env bash
# Runs a program of $root with this machine's files, processes and network around it.
set -euo pipefail
exec unshare --mount --propagation private bash -euc '
  for dir in proc sys dev run tmp etc/ssl \$2; do mkdir -p "\$1/\$dir"; mount --rbind "/\$dir" "\$1/\$dir"; done
  cp -L /etc/resolv.conf "\$1/etc/resolv.conf" 2>/dev/null || true
  exec chroot "\$1" /bin/bash -c "cd \"\\\$0\" && exec \"\\\$@\"" "\$3" "\${@:4}"
' - "$root" "\${PWD#/}" "\$PWD" "\$@"
EOF
  chmod +x "$venv/bin/enter"
  "$venv/bin/enter" python3.13 -m venv --copies "$venv.inner"
  "$venv/bin/enter" "$venv.inner/bin/pip" install --quiet --disable-pip-version-check -r tests/python/requirements.txt
  printf '#!/usr/bin/env bash\nexec "%s" "%s" -m pytest "$@"\n' "$venv/bin/enter" "$venv.inner/bin/python3.13" >"$venv/bin/pytest"
  printf '#!/usr/bin/env bash\nexec "%s" "%s" "$@"\n' "$venv/bin/enter" "$venv.inner/bin/python3.13" >"$venv/bin/python"
  chmod +x "$venv/bin/pytest" "$venv/bin/python"
fi
echo "$stamp" >"$venv/.stamp"
