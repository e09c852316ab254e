-- One database holds one cluster. Ids of 64 bits are stored bit-cast; captures are hyphenated lower-case UUIDs.
-- `version` grows with each write of a row (compare-and-set), `update_at` is for people: no decision reads it.

CREATE TABLE cluster (
    id         INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    cluster_id TEXT    NOT NULL,
    version    INTEGER NOT NULL DEFAULT 1,
    update_at  TEXT    NOT NULL DEFAULT CURRENT_TIMESTAMP
) STRICT;

-- A random (version 4) UUID: it says which database this is, and is written this once.
INSERT INTO cluster (id, cluster_id)
SELECT 1, substr(h, 1, 8) || '-' || substr(h, 9, 4) || '-4' || substr(h, 14, 3) || '-a' || substr(h, 18, 3) || '-'
          || substr(h, 21, 12)
FROM (SELECT lower(hex(randomblob(16))) AS h);

-- `controller_epoch` is that of the last acquisition; it stays when the lease is given back.
CREATE TABLE election (
    id               INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    leader_id        TEXT,
    controller_epoch INTEGER NOT NULL DEFAULT 0,
    lease_seq        INTEGER NOT NULL DEFAULT 0,
    cooldown         TEXT,
    version          INTEGER NOT NULL DEFAULT 1,
    update_at        TEXT    NOT NULL DEFAULT CURRENT_TIMESTAMP
) STRICT;

INSERT INTO election (id) VALUES (1);

-- `controller_epoch` is that which may write now: 0 while nobody leads.
CREATE TABLE fence (
    id               INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    controller_epoch INTEGER NOT NULL DEFAULT 0,
    revision         INTEGER NOT NULL DEFAULT 0,
    version          INTEGER NOT NULL DEFAULT 1,
    update_at        TEXT    NOT NULL DEFAULT CURRENT_TIMESTAMP
) STRICT;

INSERT INTO fence (id) VALUES (1);

-- Heartbeats touch this row and nothing else. `heartbeat_seq` is their compare-and-set; a beat does not move `version`.
CREATE TABLE capture (
    id             TEXT    NOT NULL PRIMARY KEY,
    advertise_addr TEXT    NOT NULL,
    binary_version TEXT    NOT NULL,
    labels         TEXT    NOT NULL,
    machine_id     TEXT    NOT NULL,
    state          TEXT    NOT NULL,
    heartbeat_seq  INTEGER NOT NULL DEFAULT 0,
    heartbeat_at   TEXT    NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    started_at     TEXT    NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    revision       INTEGER NOT NULL,
    version        INTEGER NOT NULL DEFAULT 1,
    update_at      TEXT    NOT NULL DEFAULT CURRENT_TIMESTAMP
) STRICT;

-- `endpoints` is the URI with its secrets masked; `credentials` the whole URI where it has secrets, else empty.
CREATE TABLE upstream (
    id          INTEGER NOT NULL PRIMARY KEY,
    endpoints   TEXT    NOT NULL,
    credentials TEXT    NOT NULL,
    version     INTEGER NOT NULL DEFAULT 1,
    update_at   TEXT    NOT NULL DEFAULT CURRENT_TIMESTAMP
) STRICT;

-- `removed_at` is set when its removal is asked. `removed_marker` is 0 while it holds its name, and its uuid from when its
-- schedule is 'removed' as well; it is NOT NULL, for a unique index admits any number of NULLs.
CREATE TABLE changefeed_info (
    uuid              INTEGER NOT NULL PRIMARY KEY,
    namespace         TEXT    NOT NULL,
    id                TEXT    NOT NULL,
    removed_marker    INTEGER NOT NULL DEFAULT 0,
    upstream_id       INTEGER NOT NULL REFERENCES upstream (id) DEFERRABLE INITIALLY DEFERRED,
    sink_uri          TEXT    NOT NULL,
    start_ts          INTEGER NOT NULL,
    target_ts         INTEGER NOT NULL,
    config            TEXT    NOT NULL,
    creator_version   TEXT    NOT NULL,
    client_request_id TEXT    NOT NULL UNIQUE,
    created_at        TEXT    NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    removed_at        TEXT,
    version           INTEGER NOT NULL DEFAULT 1,
    update_at         TEXT    NOT NULL DEFAULT CURRENT_TIMESTAMP,
    UNIQUE (namespace, id, removed_marker)
) STRICT;

CREATE INDEX changefeed_info_upstream ON changefeed_info (upstream_id);

CREATE TABLE changefeed_state (
    changefeed_uuid INTEGER NOT NULL PRIMARY KEY
                    REFERENCES changefeed_info (uuid) DEFERRABLE INITIALLY DEFERRED,
    state           TEXT    NOT NULL DEFAULT '',
    warning         TEXT,
    error           TEXT,
    version         INTEGER NOT NULL DEFAULT 1,
    update_at       TEXT    NOT NULL DEFAULT CURRENT_TIMESTAMP
) STRICT;

-- `owner` is NULL exactly when `owner_state` is 'removed'.
CREATE TABLE schedule (
    changefeed_uuid INTEGER NOT NULL PRIMARY KEY
                    REFERENCES changefeed_info (uuid) DEFERRABLE INITIALLY DEFERRED,
    owner           TEXT,
    owner_state     TEXT    NOT NULL DEFAULT 'removed',
    owner_epoch     INTEGER NOT NULL DEFAULT 0,
    task_position   TEXT    NOT NULL,
    revision        INTEGER NOT NULL,
    version         INTEGER NOT NULL DEFAULT 1,
    update_at       TEXT    NOT NULL DEFAULT CURRENT_TIMESTAMP
) STRICT;

CREATE INDEX schedule_owner ON schedule (owner, revision);

CREATE TABLE processor (
    changefeed_uuid INTEGER NOT NULL
                    REFERENCES changefeed_info (uuid) DEFERRABLE INITIALLY DEFERRED,
    capture_id      TEXT    NOT NULL,
    state           TEXT    NOT NULL,
    owner_epoch     INTEGER NOT NULL,
    epoch           INTEGER NOT NULL,
    assignment      TEXT    NOT NULL,
    revision        INTEGER NOT NULL,
    version         INTEGER NOT NULL DEFAULT 1,
    update_at       TEXT    NOT NULL DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (changefeed_uuid, capture_id)
) STRICT;

CREATE INDEX processor_capture ON processor (capture_id, revision, changefeed_uuid);

-- All that one capture has to say about how far its changefeeds are, as one JSON value. A write wants a higher `seq`, and
-- none is accepted once the row is sealed.
CREATE TABLE progress (
    capture_id TEXT    NOT NULL PRIMARY KEY,
    seq        INTEGER NOT NULL DEFAULT 0,
    sealed     INTEGER NOT NULL DEFAULT 0,
    value      TEXT    NOT NULL,
    version    INTEGER NOT NULL DEFAULT 1,
    update_at  TEXT    NOT NULL DEFAULT CURRENT_TIMESTAMP
) STRICT;
