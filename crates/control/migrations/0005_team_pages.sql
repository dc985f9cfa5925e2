-- With the column of its first expression beside it, the index alone answers which teams are on a page.
drop index teams_listed;
create index teams_listed on teams ((deleted_at is not null), created_at desc, id) include (deleted_at)
where id <> '00000000-0000-0000-0000-000000000000';
