-- Rows of a large deployment. An empty line ends a step, and what it makes is in the comment above it.
--
-- The settings bench.* hold how many rows there are to be, and the ids of what the platform itself has made: a team, its
-- owner and a member to be. All else follows from the numbers of rows, and is the same each time but for the times, which
-- end now. Rows lie in the order in which they came about.
create temp table size as
select current_setting('bench.users')::int as users, current_setting('bench.teams')::int as teams,
    current_setting('bench.api_keys')::int as api_keys, current_setting('bench.capsules')::int as capsules,
    current_setting('bench.audit_rows')::int as audit_rows;
analyze size;
-- Teams by number: 0 is the run's own, -1 the platform's.
create temp table team_no as
select n, md5('team' || n)::uuid as id, md5('user' || n)::uuid as owner
from generate_series(1, current_setting('bench.teams')::int) n
union all
select 0, current_setting('bench.team')::uuid, current_setting('bench.admin')::uuid
union all
select -1, '00000000-0000-0000-0000-000000000000', current_setting('bench.admin')::uuid;
analyze team_no;

-- teams
-- Every fiftieth is deleted.
insert into teams (id, name, slug, created_at, deleted_at)
select id, 'Team ' || n, substr(md5('slug' || n), 1, 6) || '-' || substr(md5('slug' || n), 7, 6),
    now() - (teams - n) * interval '2 years' / teams, case when n % 50 = 0 then now() end
from team_no, size where n > 0 order by n;

-- people
-- Every fiftieth is deleted, every fiftieth has not activated the account, every hundredth is locked.
insert into users (id, email, name, password_hash, status, created_at, updated_at, deleted_at)
select md5('user' || n)::uuid, names[1 + n % 50] || '@company' || n / 50 || '.example', initcap(names[1 + n % 50]),
    '$argon2id$v=19$m=19456,t=2,p=1$' || md5('salt' || n) || '$' || md5('hash' || n),
    case when n % 50 = 0 then 'deleted' when n % 50 = 1 then 'inactive' when n % 100 = 52 then 'disabled' else 'active' end,
    at, at, case when n % 50 = 0 then now() end
from size, generate_series(1, current_setting('bench.users')::int) n,
    lateral (select now() - (users - n) * interval '2 years' / users) time (at),
    (select string_to_array('ada alan alice anna barbara ben bob carl clara dan dora edith emil emma erik eva felix fiona '
        'frank fred grace greta hanna hugo ida ines jack jane john julia karl kate kurt lars lena lisa lucy mara mark mary '
        'max nina olaf otto paul rosa sara tom ute vera', ' ')) list (names);

-- memberships
-- Everybody is in one team, every fifth in a second one. The first of a team owns it.
insert into team_members (team_id, user_id, role, is_default, joined_at)
select md5('team' || team)::uuid, md5('user' || n)::uuid,
    case when n <= teams then 'owner' when n % 7 = 0 then 'admin' else 'member' end, team % 50 <> 0, at
from size, generate_series(1, current_setting('bench.users')::int) n,
    lateral (select 1 + (n - 1) % teams, now() - (users - n) * interval '2 years' / users) it (team, at)
where n <= teams or n % 50 <> 0
union all
select md5('team' || 1 + (n + 6) % teams)::uuid, md5('user' || n)::uuid, 'member', false,
    now() - (users - n) * interval '2 years' / users + interval '1 hour'
from size, generate_series(1, current_setting('bench.users')::int) n where n % 5 = 1 and n % 50 <> 0;

-- memberships in the run's own team and of its owner
-- A hundred people are in the team, and its owner is in twenty others.
insert into team_members (team_id, user_id, role)
select current_setting('bench.team')::uuid, current_setting('bench.member')::uuid, 'member'
union all
select current_setting('bench.team')::uuid, md5('user' || n)::uuid, 'member'
from size, generate_series(2, users, users / 98) n where n % 50 <> 0
union all
select id, current_setting('bench.admin')::uuid, 'member' from team_no where n between 1 and 20;

-- keys
-- Every hundredth is the run's own team's.
insert into api_keys (id, team_id, name, key_hash, key_prefix, created_by, created_at, last_used)
select md5('key' || key.n)::uuid, id, 'key ' || key.n, md5('key' || key.n) || md5('hash' || key.n), 'wrn_' || substr(md5('key' || key.n), 1, 6),
    owner, now() - (api_keys - key.n) * interval '1 year' / api_keys, now()
from size, (select n, case when n % 100 = 0 then 0 else 1 + floor(random() * teams)::int end as team
    from size, generate_series(1, current_setting('bench.api_keys')::int) n offset 0) key
join team_no on team_no.n = team order by key.n;

-- hosts
-- None of them is to be watched.
insert into hosts (id, kind, status, address, cpu_cores, memory_mb, disk_gb)
select md5('host' || n)::uuid, 'regular', 'offline', '192.0.2.1:1', 64, 262144, 4000 from generate_series(0, 49) n;

-- capsules
-- The newest fiftieth lives. Every tenth is the run's own team's, of which a hundred live.
insert into capsules (id, team_id, host_id, template_team_id, template_id, template_name, status, generation, vcpus,
    memory_mb, disk_mb, timeout_sec, metadata, versions, reason, created_at, updated_at, started_at, last_active_at)
select md5('capsule' || capsule.n)::uuid, id, md5('host' || capsule.n % 50)::uuid,
    '00000000-0000-0000-0000-000000000000', '00000000-0000-0000-0000-000000000000', 'minimal',
    case when lives then case when capsule.n % 7 < 3 then 'paused' else 'running' end
        when capsule.n % 100 = 3 then 'error' else 'stopped' end,
    4, 1 + capsule.n % 2, 512, 5120, 3600, jsonb_build_object('job', 'nightly', 'build', capsule.n::text),
    '{"kernel_version": "6.1.141", "vmm_version": "10.0", "agent_version": "0.1.0"}',
    case when not lives then 'its time was over' end, at, at, at, at
from size,
    (select n, case when n % 10 = 0 then 0 else 1 + floor(random() * teams)::int end as team
    from size, generate_series(1, current_setting('bench.capsules')::int) n offset 0) capsule
join team_no on team_no.n = team,
    lateral (select now() - (capsules - capsule.n) * interval '1 year' / capsules,
        capsule.n > capsules - capsules / 50 and (team > 0 or capsule.n % greatest(10, capsules / 5000) = 0)) it (at, lives);

-- audit entries
-- Every tenth is the run's own team's, every hundredth the platform's.
insert into audit_logs (id, team_id, actor_type, actor_id, actor_name, resource_type, resource_id, action, scope, status,
    metadata, created_at)
select md5('entry' || entry.n)::uuid, id,
    case when entry.n % 16 = 0 then 'system' when entry.n % 3 = 0 then 'api_key' else 'user' end,
    case when entry.n % 16 > 0 then owner end, case when entry.n % 16 > 0 then 'Ada' end,
    resources[kind], 'cl-' || lpad(entry.n::text, 25, '0'), actions[kind], scopes[kind], statuses[kind],
    '{"template": "minimal"}', now() - (audit_rows - entry.n) * interval '1 year' / audit_rows
from size,
    (select n, case when n % 10 = 0 then 0 when n % 100 = 1 then -1 else 1 + floor(random() * teams)::int end as team,
        random() * 100 as draw
    from size, generate_series(1, current_setting('bench.audit_rows')::int) n offset 0) entry
join team_no on team_no.n = team,
    lateral (select case when team < 0 then 14 when draw < 40 then 1 when draw < 75 then 2 when draw < 84 then 3
        when draw < 92 then 4 when draw < 93 then 5 when draw < 95 then 6 when draw < 96 then 7 when draw < 96.5 then 8
        when draw < 97 then 9 when draw < 98.5 then 10 when draw < 99 then 11 when draw < 99.99 then 12 else 13 end) drawn (kind),
    (select '{sandbox,sandbox,sandbox,sandbox,sandbox,snapshot,snapshot,api_key,api_key,member,member,member,team,user}'::text[],
        '{create,destroy,pause,resume,error,create,delete,create,revoke,add,remove,role_update,rename,activate}'::text[],
        '{team,team,team,team,team,team,team,team,team,admin,admin,admin,team,admin}'::text[],
        '{success,warning,success,success,error,success,warning,success,warning,success,warning,info,info,success}'::text[])
        names (resources, actions, scopes, statuses);
