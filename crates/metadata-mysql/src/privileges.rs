//! What the store's user must be allowed, table by table, and who says so when it is not.
//!
//! A grant that is missing would show much later, in the middle of a takeover perhaps. So [`check`] tries each at the
//! start, by a statement that changes nothing and locks no row, and names all that are missing with the `GRANT` that
//! mends them. (`SHOW GRANTS` would not do: roles, patterns and partial revokes decide as well, and each server has its
//! own.)

use std::fmt::Write as _;

use metadata_api::MetadataError;
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, query_scalar};

use crate::retry::{TxError, TxResult, is_denied};

/// What a running store does to each table, and no more: `(table, privileges)`.
pub const PRIVILEGES: [(&str, &[&str]); 11] = [
    ("_sqlx_migrations", &["SELECT"]),
    ("cluster", &["SELECT"]),
    ("fence", &["SELECT", "UPDATE"]),
    ("election", &["SELECT", "UPDATE"]),
    ("capture", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("upstream", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("changefeed_info", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("changefeed_state", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("schedule", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("processor", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("progress", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
];

/// What `cdc migrate` does to the whole database. Only `CREATE` is needed for today's files; the others are for later ones.
pub(crate) const MIGRATION_PRIVILEGES: &str = "SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX";

/// A statement that wants this privilege and no other, and does nothing. Every table of the store has a `version`.
fn probe(table: &str, privilege: &str) -> String {
    match privilege {
        "INSERT" => {
            format!(
                "INSERT IGNORE INTO {table} (version) SELECT 1 FROM (SELECT 1 AS one) AS none WHERE FALSE"
            )
        }
        "UPDATE" => format!("UPDATE {table} SET version = 0 WHERE FALSE"),
        "DELETE" => format!("DELETE FROM {table} WHERE FALSE"),
        _ => format!("SELECT 1 FROM {table} WHERE FALSE"),
    }
}

/// Whether the user may do all that the store does.
///
/// # Errors
/// `Unsupported`, with what is missing and the statements that grant it.
pub(crate) async fn check(connection: &mut MySqlConnection, database: &str) -> TxResult<()> {
    let mut missing = Vec::new();
    for (table, privileges) in PRIVILEGES {
        let mut denied = Vec::new();
        for privilege in privileges {
            match sqlx::raw_sql(AssertSqlSafe(probe(table, privilege))).execute(&mut *connection).await {
                Ok(_) => {}
                // `TiDB` wants SELECT for each of the others.
                Err(error) if is_denied(&error) && denied.contains(&"SELECT") && lacks_select(&error) => {}
                Err(error) if is_denied(&error) => denied.push(*privilege),
                Err(error) => return Err(error.into()),
            }
        }
        if !denied.is_empty() {
            missing.push((table, denied.join(", ")));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let user = current_user(connection).await?;
    Err(MetadataError::Unsupported { reason: refusal(&user, database, &missing) }.into())
}

fn lacks_select(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.message().starts_with("SELECT command denied"))
}

fn refusal(user: &str, database: &str, missing: &[(&str, String)]) -> String {
    let mut text = format!("{user} may not ");
    for (n, (table, privileges)) in missing.iter().enumerate() {
        // Writing to a `String` does not fail.
        let _ = write!(text, "{}{privileges} on {table}", if n == 0 { "" } else { "; " });
    }
    text.push_str(". Run, as an administrator:");
    for (table, privileges) in missing {
        let _ = write!(text, " {}", grant(privileges, database, Some(table), user));
    }
    text
}

/// A `GRANT` on one table, or on all of the database.
pub(crate) fn grant(privileges: &str, database: &str, table: Option<&str>, user: &str) -> String {
    let database = database.replace('`', "``");
    let table = table.map_or("*".to_owned(), |table| format!("`{table}`"));
    format!("GRANT {privileges} ON `{database}`.{table} TO {user};")
}

/// The account that the server took the user for, as `GRANT` wants it.
pub(crate) async fn current_user(connection: &mut MySqlConnection) -> TxResult<String> {
    let account: String = query_scalar("SELECT CURRENT_USER()").fetch_one(connection).await?;
    Ok(quoted_account(&account))
}

fn quoted_account(account: &str) -> String {
    let quote = |text: &str| format!("'{}'", text.replace('\'', "''"));
    match account.rsplit_once('@') {
        Some((user, host)) => format!("{}@{}", quote(user), quote(host)),
        None => quote(account),
    }
}

/// What to say instead of `error` when the schema is behind and the user may not change it; any other error as it is.
pub(crate) async fn explain_ddl(
    connection: &mut MySqlConnection,
    database: &str,
    behind: usize,
    error: TxError,
) -> TxError {
    let TxError::Db(denied) = &error else { return error };
    if !is_denied(denied) {
        return error;
    }
    let user = current_user(connection).await.unwrap_or_else(|_| "this user".to_owned());
    let reason = format!(
        "the schema is {behind} migrations behind this binary, and {user} may not change it ({denied}). Run `cdc \
         migrate` once, as a user who may, or grant it: {}",
        grant(MIGRATION_PRIVILEGES, database, None, &user)
    );
    MetadataError::Unsupported { reason }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_each_and_the_remedy() {
        let text = refusal(
            &quoted_account("o'cdc@10.0.%"),
            "cdc",
            &[("fence", "UPDATE".to_owned()), ("capture", "INSERT, DELETE".to_owned())],
        );
        assert_eq!(
            text,
            "'o''cdc'@'10.0.%' may not UPDATE on fence; INSERT, DELETE on capture. Run, as an administrator: \
             GRANT UPDATE ON `cdc`.`fence` TO 'o''cdc'@'10.0.%'; GRANT INSERT, DELETE ON `cdc`.`capture` TO \
             'o''cdc'@'10.0.%';"
        );
    }
}
