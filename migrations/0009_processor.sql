-- Which captures carry a share of a changefeed's tables.
CREATE TABLE IF NOT EXISTS processor (
    changefeed_uuid BIGINT UNSIGNED NOT NULL,
    capture_id      VARCHAR(36)     NOT NULL,
    state           VARCHAR(16)     NOT NULL,
    owner_epoch     BIGINT UNSIGNED NOT NULL,
    epoch           BIGINT UNSIGNED NOT NULL,
    assignment      MEDIUMTEXT      NOT NULL,
    revision        BIGINT UNSIGNED NOT NULL,
    version         BIGINT UNSIGNED NOT NULL DEFAULT 1,
    update_at       DATETIME(6)     NOT NULL DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6),
    PRIMARY KEY (changefeed_uuid, capture_id),
    KEY processor_capture (capture_id, revision)
) DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
