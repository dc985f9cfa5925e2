-- Which refresh token a refresh token was bought with. The older one is revoked not when it is used, whose answer may never
-- arrive, but when a token that it bought is: only then is it known that the host has received one.
alter table host_refresh_tokens
    add column parent_id uuid references host_refresh_tokens (id) on delete set null;
