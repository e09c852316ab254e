-- What a changefeed is to do. `removed_at` is set when its removal is asked. `removed_marker` is 0 while it holds its name
-- and becomes its uuid when its schedule is `removed` as well; it is never NULL, since a unique key admits any number of
-- NULLs.
CREATE TABLE IF NOT EXISTS changefeed_info (
    uuid              BIGINT UNSIGNED NOT NULL,
    namespace         VARCHAR(128)    NOT NULL,
    id                VARCHAR(128)    NOT NULL,
    removed_marker    BIGINT UNSIGNED NOT NULL DEFAULT 0,
    upstream_id       BIGINT UNSIGNED NOT NULL,
    sink_uri          TEXT            NOT NULL,
    start_ts          BIGINT UNSIGNED NOT NULL,
    target_ts         BIGINT UNSIGNED NOT NULL,
    config            MEDIUMTEXT      NOT NULL,
    creator_version   VARCHAR(255)    NOT NULL,
    client_request_id VARCHAR(36)     NOT NULL,
    created_at        DATETIME(6)     NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
    removed_at        DATETIME(6)     NULL,
    version           BIGINT UNSIGNED NOT NULL DEFAULT 1,
    update_at         DATETIME(6)     NOT NULL DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6),
    PRIMARY KEY (uuid),
    UNIQUE KEY changefeed_name (namespace, id, removed_marker),
    UNIQUE KEY changefeed_client_request (client_request_id),
    KEY changefeed_upstream (upstream_id)
) DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
