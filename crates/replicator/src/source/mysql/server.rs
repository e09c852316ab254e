//! What we ask a server: whether it can serve, where its binlog ends, what time it has.

use std::collections::HashMap;

use capture_runtime::task::TaskError;
use metadata_api::model::Ts;
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Row};

use super::charset::{Charset, Collations};
use super::endpoint::Endpoint;
use super::gtid::GtidSet;
use super::position::ts_from_micros;

/// What is true of a server while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// Its `server_uuid`.
    pub(super) uuid: String,
    /// Its `server_id`.
    pub(super) server_id: u32,
    /// `gtid_mode = ON`.
    pub(super) gtids: bool,
    /// `lower_case_table_names` is not 0.
    pub(super) ignores_case: bool,
}

/// Where the binlog ended at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// The server's time *before* it said where its log ends.
    pub(super) now: Ts,
    /// The file.
    pub(super) file: String,
    /// The position behind the last event.
    pub(super) pos: u64,
    /// The executed GTID set, as text.
    pub(super) gtids: String,
}

/// Asks for the facts, and refuses a server that cannot serve.
pub(super) async fn facts(endpoint: &Endpoint, conn: &mut Conn) -> Result<Facts, TaskError> {
    let version: Option<(String, String)> =
        endpoint.ask(conn.query_first("SELECT VERSION(), @@version_comment")).await?;
    let (version, comment) = version.unwrap_or_default();
    supported(&version, &comment).map_err(|reason| endpoint.invalid(reason))?;
    let names = [
        "log_bin",
        "binlog_format",
        "binlog_row_image",
        "binlog_row_metadata",
        "binlog_row_value_options",
        "server_uuid",
        "server_id",
        "gtid_mode",
        "lower_case_table_names",
    ];
    let list: Vec<String> = names.iter().map(|name| format!("CONCAT(@@GLOBAL.{name}, '')")).collect();
    let row: Option<Row> = endpoint.ask(conn.query_first(format!("SELECT {}", list.join(", ")))).await?;
    let values: HashMap<&str, String> =
        names.iter().enumerate().map(|(at, name)| (*name, text(row.as_ref(), at))).collect();
    let value = |name: &str| values.get(name).map_or("", String::as_str);
    settings(value).map_err(|reason| endpoint.misconfigured(reason))?;
    Ok(Facts {
        uuid: value("server_uuid").to_owned(),
        server_id: value("server_id").parse().unwrap_or_default(),
        gtids: value("gtid_mode") == "ON",
        ignores_case: value("lower_case_table_names") != "0",
    })
}

/// Why a server of that version is refused.
fn supported(version: &str, comment: &str) -> Result<(), String> {
    let both = format!("{version} {comment}").to_ascii_lowercase();
    for name in ["MariaDB", "TiDB"] {
        if both.contains(&name.to_ascii_lowercase()) {
            return Err(format!(
                "the server is {name} ({version}); as a source only MySQL 8.4 and 9.x are supported"
            ));
        }
    }
    let mut numbers =
        version.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let number = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if number < (8, 4) {
        return Err(format!(
            "the server is MySQL {version}; as a source only MySQL 8.4 and 9.x are supported"
        ));
    }
    Ok(())
}

/// The first setting that does not fit, and how to mend it.
fn settings<'v>(value: impl Fn(&str) -> &'v str) -> Result<(), String> {
    if value("log_bin") != "1" {
        return Err("log_bin is OFF; start the server with --log-bin".to_owned());
    }
    for (name, wanted) in
        [("binlog_format", "ROW"), ("binlog_row_image", "FULL"), ("binlog_row_metadata", "FULL")]
    {
        if value(name) != wanted {
            return Err(format!(
                "{name} is {}; it must be {wanted}: SET PERSIST {name} = {wanted}, and let running sessions end",
                value(name)
            ));
        }
    }
    if value("binlog_row_value_options").contains("PARTIAL_JSON") {
        return Err("binlog_row_value_options is PARTIAL_JSON; it must be empty: \
                    SET PERSIST binlog_row_value_options = '', and let running sessions end"
            .to_owned());
    }
    Ok(())
}

/// Refuses an account that lacks a privilege: by doing what needs it, so that roles count.
pub(super) async fn check_privileges(endpoint: &Endpoint, conn: &mut Conn) -> Result<(), TaskError> {
    const ER_SPECIFIC_ACCESS_DENIED: u16 = 1227;
    for (privilege, statement) in
        [("REPLICATION CLIENT", "SHOW BINARY LOG STATUS"), ("REPLICATION SLAVE", "SHOW REPLICAS")]
    {
        match endpoint.bounded(conn.query_drop(statement)).await? {
            Ok(()) => {}
            Err(mysql_async::Error::Server(error)) if error.code == ER_SPECIFIC_ACCESS_DENIED => {
                let user: Option<String> = endpoint.ask(conn.query_first("SELECT CURRENT_USER()")).await?;
                let user = user.unwrap_or_default();
                let (name, host) = user.rsplit_once('@').unwrap_or((&user, "%"));
                return Err(endpoint.misconfigured(format_args!(
                    "user '{name}'@'{host}' lacks the privilege {privilege}: \
                     GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO '{name}'@'{host}'"
                )));
            }
            Err(error) => return Err(endpoint.lost(error)),
        }
    }
    Ok(())
}

/// The server's time.
pub(super) async fn now(endpoint: &Endpoint, conn: &mut Conn) -> Result<Ts, TaskError> {
    let micros: Option<u64> =
        endpoint.ask(conn.query_first("SELECT CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS UNSIGNED)")).await?;
    Ok(ts_from_micros(micros.unwrap_or_default()))
}

/// Who the server is.
pub(super) async fn uuid(endpoint: &Endpoint, conn: &mut Conn) -> Result<String, TaskError> {
    let uuid: Option<String> = endpoint.ask(conn.query_first("SELECT @@GLOBAL.server_uuid")).await?;
    Ok(uuid.unwrap_or_default())
}

/// Asks for the time and then for the end of the log.
///
/// The server gives the end under the lock under which transactions get their commit time and are written: one
/// that is written behind this end has a commit time after `now`, unless the server's clock was set back.
pub(super) async fn end(endpoint: &Endpoint, conn: &mut Conn) -> Result<End, TaskError> {
    let now = now(endpoint, conn).await?;
    let row: Option<Row> = endpoint.ask(conn.query_first("SHOW BINARY LOG STATUS")).await?;
    let Some(row) = row else {
        return Err(endpoint.misconfigured("log_bin is OFF; start the server with --log-bin"));
    };
    let file = text(Some(&row), 0);
    let pos = row.get_opt::<u64, _>(1).and_then(Result::ok);
    let (Some(pos), false) = (pos, file.is_empty()) else {
        return Err(endpoint.unable("SHOW BINARY LOG STATUS does not say where the log ends"));
    };
    Ok(End { now, file, pos, gtids: text(Some(&row), 4) })
}

/// The executed GTID set of an [`End`].
pub(super) fn gtid_set(endpoint: &Endpoint, text: &str) -> Result<GtidSet, TaskError> {
    text.parse().map_err(|error| endpoint.unable(format_args!("the server's executed GTIDs: {error}")))
}

/// The names of the binlog files, the oldest first.
pub(super) async fn files(endpoint: &Endpoint, conn: &mut Conn) -> Result<Vec<String>, TaskError> {
    let rows: Vec<Row> = endpoint.ask(conn.query("SHOW BINARY LOGS")).await?;
    Ok(rows.iter().map(|row| text(Some(row), 0)).collect())
}

/// The server's collations, and what it makes of character sets of one byte a character.
pub(super) async fn collations(endpoint: &Endpoint, conn: &mut Conn) -> Result<Collations, TaskError> {
    let rows: Vec<(String, u64)> = endpoint
        .ask(conn.query("SELECT CHARACTER_SET_NAME, MAXLEN FROM information_schema.CHARACTER_SETS"))
        .await?;
    let mut sets: HashMap<String, Charset> =
        rows.iter().map(|(name, _)| (name.clone(), Charset::named(name))).collect();
    let singles: Vec<&str> = rows
        .iter()
        .filter(|(name, longest)| *longest == 1 && matches!(sets.get(name), Some(Charset::Unknown(_))))
        .map(|(name, _)| name.as_str())
        .collect();
    let bytes: Vec<String> = (0_u8..=255).map(|byte| format!("{byte:02X}")).collect();
    let bytes = bytes.concat();
    let list: Vec<String> =
        singles.iter().map(|name| format!("CONVERT(_{name} X'{bytes}' USING utf8mb4)")).collect();
    if !list.is_empty() {
        let row: Option<Row> = endpoint.ask(conn.query_first(format!("SELECT {}", list.join(", ")))).await?;
        for (at, name) in singles.into_iter().enumerate() {
            sets.insert(name.to_owned(), Charset::single(name, &text(row.as_ref(), at)));
        }
    }
    let rows: Vec<(u64, String)> =
        endpoint
            .ask(conn.query(
                "SELECT ID, CHARACTER_SET_NAME FROM information_schema.COLLATIONS WHERE ID IS NOT NULL",
            ))
            .await?;
    let charset = |name: String| sets.get(&name).cloned().unwrap_or(Charset::Unknown(name));
    Ok(Collations(rows.into_iter().map(|(id, name)| (id, charset(name))).collect()))
}

/// A column as text; empty when it is NULL or missing.
fn text(row: Option<&Row>, at: usize) -> String {
    row.and_then(|row| row.get_opt::<String, _>(at)).and_then(Result::ok).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_servers_are_refused_by_name() {
        for version in ["8.4.0", "9.7.4-2", "8.10.1", "10.0.0"] {
            supported(version, "(Debian)").unwrap();
        }
        for (version, comment, wanted) in [
            ("11.8.2-MariaDB-1", "Debian", "MariaDB (11.8.2-MariaDB-1)"),
            ("8.0.11-TiDB-v8.1.0", "TiDB Server", "TiDB (8.0.11-TiDB-v8.1.0)"),
            ("8.0.36", "MySQL Community", "MySQL 8.0.36"),
            ("8.3.0", "", "MySQL 8.3.0"),
            ("", "", "MySQL ;"),
        ] {
            let reason = supported(version, comment).unwrap_err();
            assert!(reason.contains(wanted) && reason.contains("MySQL 8.4 and 9.x"), "{reason}");
        }
    }

    #[test]
    fn each_setting_is_refused_with_its_value_and_remedy() {
        let good = [
            ("log_bin", "1"),
            ("binlog_format", "ROW"),
            ("binlog_row_image", "FULL"),
            ("binlog_row_metadata", "FULL"),
            ("binlog_row_value_options", ""),
        ];
        let with = |name: &str, value: &'static str| {
            let mut values = HashMap::from(good);
            values.insert(good.iter().find(|(known, _)| *known == name).unwrap().0, value);
            settings(|name| values.get(name).unwrap())
        };
        with("log_bin", "1").unwrap();
        for (name, value, remedy) in [
            ("log_bin", "0", "--log-bin"),
            ("binlog_format", "MIXED", "SET PERSIST binlog_format = ROW"),
            ("binlog_row_image", "MINIMAL", "SET PERSIST binlog_row_image = FULL"),
            ("binlog_row_metadata", "MINIMAL", "SET PERSIST binlog_row_metadata = FULL"),
            ("binlog_row_value_options", "PARTIAL_JSON", "SET PERSIST binlog_row_value_options = ''"),
        ] {
            let reason = with(name, value).unwrap_err();
            assert!(reason.contains(name) && reason.contains(remedy), "{reason}");
            assert!(name == "log_bin" || reason.contains(value), "{reason}");
        }
    }
}
