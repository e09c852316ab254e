-- Who owns a changefeed. `owner` is NULL exactly when `owner_state` is `removed`, so the index finds an owner's live rows.
CREATE TABLE IF NOT EXISTS schedule (
    changefeed_uuid BIGINT UNSIGNED NOT NULL,
    owner           VARCHAR(36)     NULL,
    owner_state     VARCHAR(16)     NOT NULL,
    owner_epoch     BIGINT UNSIGNED NOT NULL DEFAULT 0,
    task_position   MEDIUMTEXT      NOT NULL,
    revision        BIGINT UNSIGNED NOT NULL,
    version         BIGINT UNSIGNED NOT NULL DEFAULT 1,
    update_at       DATETIME(6)     NOT NULL DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6),
    PRIMARY KEY (changefeed_uuid),
    KEY schedule_owner (owner, revision)
) DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
