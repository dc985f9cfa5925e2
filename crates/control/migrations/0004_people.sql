-- People. An address belongs to one account at a time; it is free again as soon as the account is deleted, though the row
-- stays until it is purged.
create table users (
    id uuid primary key,
    email text not null check (email = lower(btrim(email)) and char_length(email) between 3 and 254 and email like '%@%'),
    name text not null check (name = btrim(name) and char_length(name) between 1 and 100),
    -- A PHC string; null for those who sign in with a provider only.
    password_hash text,
    status text not null check (status in ('inactive', 'active', 'disabled', 'deleted')),
    is_admin boolean not null default false,
    -- Tokens signed before are refused.
    sessions_from timestamptz not null default 'epoch',
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    deleted_at timestamptz,
    constraint users_deleted_at check ((status = 'deleted') = (deleted_at is not null)),
    constraint users_admin_was_active check (not is_admin or status in ('active', 'disabled'))
);
create unique index users_email on users (email) where status <> 'deleted';
-- Prefix search needs an order that is the same everywhere.
create unique index users_search on users (email collate "C") where status = 'active';
create index users_listed on users (created_at desc, id) where status <> 'deleted';
create index users_inactive on users (created_at) where status = 'inactive';
create index users_admins on users (id) where is_admin;
create index users_purge on users (deleted_at) where status = 'deleted';

-- How people sign in beside a password.
create table identities (
    provider text not null check (provider ~ '^[a-z0-9-]{1,32}$'),
    subject text not null check (subject <> ''),
    user_id uuid not null references users (id) on delete cascade,
    created_at timestamptz not null default now(),
    primary key (provider, subject),
    constraint identities_one_per_provider unique (user_id, provider)
);

-- One-use tokens of mails, by their SHA-256.
create table user_tokens (
    token_hash text primary key check (token_hash ~ '^[0-9a-f]{64}$'),
    user_id uuid not null references users (id) on delete cascade,
    purpose text not null check (purpose in ('activation', 'reset')),
    created_at timestamptz not null default now(),
    expires_at timestamptz not null
);
create index user_tokens_user on user_tokens (user_id, purpose);
create index user_tokens_expired on user_tokens (expires_at);

-- Slugs are immutable and never reused: the row of a deleted team stays.
update teams set slug = substr(md5(gen_random_uuid()::text), 1, 6) || '-' || substr(md5(gen_random_uuid()::text), 1, 6)
where id <> '00000000-0000-0000-0000-000000000000' and slug !~ '^[0-9a-f]{6}-[0-9a-f]{6}$' and slug <> 'default';
alter table teams add column deleted_at timestamptz;

-- What there is once: the team of the machine's own key.
create table deployment (
    only_row boolean primary key default true check (only_row),
    local_team uuid references teams (id)
);
insert into deployment (local_team) values ((select id from teams where slug = 'default'));
update teams set slug = substr(md5(gen_random_uuid()::text), 1, 6) || '-' || substr(md5(gen_random_uuid()::text), 1, 6)
where slug = 'default';
alter table teams
    add constraint teams_slug check (
        case when id = '00000000-0000-0000-0000-000000000000' then slug = 'platform'
        else slug ~ '^[0-9a-f]{6}-[0-9a-f]{6}$' end
    ),
    -- As people may name a team, or as a first team is named after its person.
    add constraint teams_name check (
        name ~ '^[A-Za-z0-9 _@''-]{1,128}$' or (name like '%''s Team' and char_length(name) <= 128)
    ),
    add constraint teams_platform_lasts check (id <> '00000000-0000-0000-0000-000000000000' or deleted_at is null);
create index teams_listed on teams ((deleted_at is not null), created_at desc, id)
where id <> '00000000-0000-0000-0000-000000000000';

create table team_members (
    team_id uuid not null references teams (id) check (team_id <> '00000000-0000-0000-0000-000000000000'),
    user_id uuid not null references users (id) on delete cascade,
    role text not null check (role in ('owner', 'admin', 'member')),
    -- The team that a sign-in begins in.
    is_default boolean not null default false,
    joined_at timestamptz not null default clock_timestamp(),
    primary key (team_id, user_id)
);
create unique index team_members_owner on team_members (team_id) where role = 'owner';
create unique index team_members_default on team_members (user_id) where is_default;
create index team_members_user on team_members (user_id, joined_at, team_id);
create index team_members_team on team_members (team_id, joined_at, user_id);

update api_keys set name = left(name, 128) where char_length(name) > 128;
alter table api_keys
    add constraint api_keys_creator foreign key (created_by) references users (id) on delete cascade,
    add constraint api_keys_name check (char_length(name) <= 128);
create index api_keys_created_by on api_keys (created_by);
drop index api_keys_team;
create index api_keys_team on api_keys (team_id, created_at desc, id);

drop index capsules_team_live;
create index capsules_team_live on capsules (team_id, created_at desc, id) where status not in ('stopped', 'error');
create index templates_team on templates (team_id, created_at desc, name) where state = 'active';

-- Who asked for the change under way: {"type": …, "id": …, "name": …}; null for the platform itself.
alter table capsules add column actor jsonb;
alter table templates add column actor jsonb;

-- What was done, by whom. An entry is written in the transaction that it records and changed only when a person is purged.
create table audit_logs (
    id uuid primary key,
    team_id uuid not null references teams (id),
    actor_type text not null check (actor_type in ('user', 'api_key', 'system')),
    actor_id uuid,
    actor_name text,
    resource_type text not null,
    resource_id text,
    action text not null,
    scope text not null check (scope in ('team', 'admin')),
    status text not null check (status in ('success', 'info', 'warning', 'error')),
    metadata jsonb not null default '{}' check (jsonb_typeof(metadata) = 'object'),
    created_at timestamptz not null default clock_timestamp(),
    constraint audit_logs_system_is_nobody check (actor_type <> 'system' or (actor_id is null and actor_name is null))
);
create index audit_logs_team on audit_logs (team_id, created_at desc, id desc);
create index audit_logs_team_scope on audit_logs (team_id, created_at desc, id desc) where scope = 'team';
create index audit_logs_kind on audit_logs (team_id, resource_type, action, created_at desc, id desc);
create index audit_logs_person on audit_logs (actor_id) where actor_type = 'user';
create index audit_logs_about_person on audit_logs (resource_id) where resource_type in ('member', 'user');

-- Letters on their way, sealed because they carry tokens.
create table mails (
    id uuid primary key,
    recipient text not null,
    kind text not null,
    letter text not null,
    attempts integer not null default 0,
    due_at timestamptz not null default now(),
    created_at timestamptz not null default now(),
    expires_at timestamptz not null
);
create index mails_due on mails (due_at);
create index mails_expired on mails (expires_at);
