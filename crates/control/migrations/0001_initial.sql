-- Teams own everything. The platform team has the all-zero id and no members.
create table teams (
    id uuid primary key,
    name text not null check (name <> ''),
    slug text not null unique,
    is_byoc boolean not null default false,
    created_at timestamptz not null default now()
);

-- The secret itself is never stored: only its SHA-256, and enough of its beginning to tell keys apart in a list.
create table api_keys (
    id uuid primary key,
    team_id uuid not null references teams (id) on delete cascade,
    name text not null check (name <> ''),
    key_hash text not null unique check (key_hash ~ '^[0-9a-f]{64}$'),
    key_prefix text not null,
    created_by uuid,
    created_at timestamptz not null default now(),
    last_used timestamptz
);
create index api_keys_team on api_keys (team_id, created_at desc);

create table hosts (
    id uuid primary key,
    kind text not null check (kind in ('regular', 'byoc')),
    team_id uuid references teams (id),
    provider text,
    availability_zone text,
    arch text,
    cpu_cores bigint not null default 0 check (cpu_cores >= 0),
    memory_mb bigint not null default 0 check (memory_mb >= 0),
    disk_gb bigint not null default 0 check (disk_gb >= 0),
    address text,
    status text not null check (status in ('pending', 'online', 'offline', 'draining', 'unreachable')),
    last_heartbeat_at timestamptz,
    created_by uuid,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    constraint hosts_byoc_has_team check ((kind = 'byoc') = (team_id is not null)),
    constraint hosts_registered_has_address check (status = 'pending' or address is not null)
);
create index hosts_status on hosts (status);

create table host_tokens (
    id uuid primary key,
    host_id uuid not null references hosts (id) on delete cascade,
    token_hash text not null unique check (token_hash ~ '^[0-9a-f]{64}$'),
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    used_at timestamptz
);
create index host_tokens_host on host_tokens (host_id);

create table host_refresh_tokens (
    id uuid primary key,
    host_id uuid not null references hosts (id) on delete cascade,
    token_hash text not null unique check (token_hash ~ '^[0-9a-f]{64}$'),
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    revoked_at timestamptz
);
create index host_refresh_tokens_host on host_refresh_tokens (host_id);

create table templates (
    team_id uuid not null references teams (id),
    id uuid not null,
    name text not null check (name ~ '^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$'),
    kind text not null check (kind in ('base', 'snapshot')),
    vcpus bigint,
    memory_mb bigint,
    -- Least capacity in MiB that a capsule's disk needs to hold the template's files.
    disk_mb bigint not null check (disk_mb >= 0),
    size_bytes bigint not null default 0,
    protected boolean not null default false,
    default_user text not null default 'root',
    default_env jsonb not null default '{}',
    created_at timestamptz not null default now(),
    primary key (team_id, id),
    constraint templates_name_per_team unique (team_id, name)
);

create table capsules (
    id uuid primary key,
    team_id uuid not null references teams (id),
    host_id uuid not null references hosts (id),
    template_team_id uuid not null,
    template_id uuid not null,
    -- As the request named it, which may be an alias.
    template_name text not null,
    status text not null check (status in ('pending', 'starting', 'running', 'pausing', 'paused', 'snapshotting',
        'resuming', 'stopping', 'hibernated', 'stopped', 'missing', 'error')),
    -- The newest of the host's own counts of changes that has been taken over into this row.
    generation bigint not null default 0,
    vcpus bigint not null check (vcpus > 0),
    memory_mb bigint not null check (memory_mb > 0),
    disk_mb bigint not null check (disk_mb >= 0),
    timeout_sec bigint not null check (timeout_sec >= 0),
    metadata jsonb not null default '{}',
    versions jsonb not null default '{}',
    -- Why it ended, for operators.
    reason text,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    started_at timestamptz,
    last_active_at timestamptz
);
create index capsules_team_live on capsules (team_id, created_at desc) where status not in ('stopped', 'error');
create index capsules_host_live on capsules (host_id) where status not in ('stopped', 'error');

insert into teams (id, name, slug)
values ('00000000-0000-0000-0000-000000000000', 'Platform', 'platform');

insert into templates (team_id, id, name, kind, disk_mb, protected)
values ('00000000-0000-0000-0000-000000000000', '00000000-0000-0000-0000-000000000000', 'minimal', 'base', 1024, true);
