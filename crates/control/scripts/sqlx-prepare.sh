#!/bin/sh
# Records what PostgreSQL says about every query of this crate into .sqlx, against which builds without a database check
# them. Run it after changing a query or adding a migration, and commit the result. Starts a cluster of its own and
# removes it again. As root it runs the cluster as user postgres.
set -eu
crate=$(cd "$(dirname "$0")/.." && pwd)
bin=${PG_BIN:-/usr/lib/postgresql/15/bin}
dir=$(mktemp -d)
as() { if [ "$(id -u)" = 0 ]; then setpriv --reuid=postgres --regid=postgres --init-groups "$@"; else "$@"; fi; }
end() { as "$bin/pg_ctl" -D "$dir/data" -m immediate stop >/dev/null 2>&1 || true; rm -rf "$dir"; }
trap end EXIT INT TERM
[ "$(id -u)" != 0 ] || chown postgres "$dir"

cd "$dir"
as "$bin/initdb" -D "$dir/data" -U postgres -A trust -E UTF8 --locale=C.UTF-8 -N >/dev/null
as "$bin/pg_ctl" -D "$dir/data" -w -l "$dir/log" \
    -o "-c listen_addresses= -c unix_socket_directories=$dir -c fsync=off" start >/dev/null
for migration in "$crate"/migrations/*.sql; do
    as "$bin/psql" -q -v ON_ERROR_STOP=1 -h "$dir" -U postgres postgres <"$migration"
done

rm -rf "$crate/.sqlx"
mkdir "$crate/.sqlx"
touch "$crate/src/lib.rs"
cd "$crate"
SQLX_OFFLINE=false SQLX_OFFLINE_DIR="$crate/.sqlx" \
    DATABASE_URL="postgres://postgres@$(printf %s "$dir" | sed 's|/|%2F|g')/postgres" cargo check -p wrenn-control
echo "$(find "$crate/.sqlx" -name '*.json' | wc -l) queries recorded in $crate/.sqlx"
