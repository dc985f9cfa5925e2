-- A template is listed and usable while it is `active` only. A name has at most one template that was finished, and at
-- most one in the making beside it, which takes its place in one transaction. What was left unfinished by a crash is
-- given up after a while (`state_since`), and its files are removed.
alter table templates
    -- Where its files are; null for those that are on every host.
    add column host_id uuid references hosts (id),
    add column state text not null default 'active' check (state in ('creating', 'active', 'deleting')),
    add column state_since timestamptz not null default now(),
    add column metadata jsonb not null default '{}',
    drop constraint templates_name_per_team;
create unique index templates_name_finished on templates (team_id, name) where state <> 'creating';
create unique index templates_name_creating on templates (team_id, name) where state = 'creating';
create index templates_unfinished on templates (host_id) where state <> 'active';

-- Files of templates that no longer exist, until their host has removed them.
create table template_deletions (
    host_id uuid not null references hosts (id) on delete cascade,
    team_id uuid not null,
    template_id uuid not null,
    -- When to ask the host next.
    due_at timestamptz not null default now(),
    primary key (host_id, team_id, template_id)
);

-- What a capsule has from its template, which may be gone when a snapshot is made of the capsule.
alter table capsules
    add column default_user text not null default 'root',
    add column default_env jsonb not null default '{}';
