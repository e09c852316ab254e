-- All that one capture has to say about how far its changefeeds are, as one JSON value. A write wants a higher `seq`, and
-- none is accepted once the row is sealed.
CREATE TABLE IF NOT EXISTS progress (
    capture_id VARCHAR(36)     NOT NULL,
    seq        BIGINT UNSIGNED NOT NULL DEFAULT 0,
    sealed     TINYINT(1)      NOT NULL DEFAULT 0,
    value      MEDIUMTEXT      NOT NULL,
    version    BIGINT UNSIGNED NOT NULL DEFAULT 1,
    update_at  DATETIME(6)     NOT NULL DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6),
    PRIMARY KEY (capture_id)
) DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
