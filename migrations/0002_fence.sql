-- One row. Whoever changes what others act on locks it first and takes the next revision from it, so commits are in
-- revision order. `controller_epoch` is the epoch that may write as controller now; 0 = nobody may.
CREATE TABLE IF NOT EXISTS fence (
    id               TINYINT UNSIGNED NOT NULL,
    controller_epoch BIGINT UNSIGNED  NOT NULL DEFAULT 0,
    revision         BIGINT UNSIGNED  NOT NULL DEFAULT 0,
    version          BIGINT UNSIGNED  NOT NULL DEFAULT 1,
    update_at        DATETIME(6)      NOT NULL DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6),
    PRIMARY KEY (id)
) DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
