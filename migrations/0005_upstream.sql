-- Where changes come from. `endpoints` may be shown, `credentials` never.
CREATE TABLE IF NOT EXISTS upstream (
    id          BIGINT UNSIGNED NOT NULL,
    endpoints   TEXT            NOT NULL,
    credentials TEXT            NOT NULL,
    version     BIGINT UNSIGNED NOT NULL DEFAULT 1,
    update_at   DATETIME(6)     NOT NULL DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6),
    PRIMARY KEY (id)
) DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
