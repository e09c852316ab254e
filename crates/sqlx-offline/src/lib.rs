//! The checked queries of the workspace, kept in one file, so that a build needs no database.
//!
//! sqlx wants its offline data as one JSON file a query, in the directory `SQLX_OFFLINE_DIR`. The workspace keeps
//! all of it in `sqlx-data.json` at its root: one object a database (`MySQL`, `SQLite`), in it one entry a query,
//! keyed by the query's hash. Each store's build script calls [`unpack`]; `tools/sqlx-data` writes the file anew.

use std::path::{Path, PathBuf};
use std::{env, fs};

use serde_json::{Map, Value};

/// The file's name, at the root of the workspace.
pub const FILE: &str = "sqlx-data.json";

/// For a store's build script: unpacks the queries of one database (`MySQL` or `SQLite`, as sqlx spells them) to
/// `OUT_DIR` and points sqlx's macros there.
///
/// Says nothing to cargo when `SQLX_OFFLINE_DIR` is set already: then `tools/sqlx-data` is at work, or a developer
/// who knows what they want.
///
/// # Panics
/// When `sqlx-data.json` cannot be read or written out; a build script has no better way to say so.
pub fn unpack(database: &str) {
    println!("cargo:rerun-if-env-changed=SQLX_OFFLINE_DIR");
    if env::var_os("SQLX_OFFLINE_DIR").is_some() {
        return;
    }
    let variable = |name: &str| {
        PathBuf::from(env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: cargo sets it")))
    };
    let file = variable("CARGO_MANIFEST_DIR").join("../..").join(FILE);
    println!("cargo:rerun-if-changed={}", file.display());
    let target = variable("OUT_DIR").join("sqlx");
    if let Err(reason) = unpack_to(&file, database, &target) {
        panic!("{}: {reason}; `tools/sqlx-data` writes it anew", file.display());
    }
    println!("cargo:rustc-env=SQLX_OFFLINE_DIR={}", target.display());
    println!("cargo:rustc-env=SQLX_OFFLINE=true");
}

/// Writes the queries of one database as the files that sqlx looks for. What was in `target` goes.
///
/// # Errors
/// The reason, as text.
pub fn unpack_to(file: &Path, database: &str, target: &Path) -> Result<(), String> {
    let all = read(file)?;
    let _ = fs::remove_dir_all(target);
    fs::create_dir_all(target).map_err(|error| format!("{}: {error}", target.display()))?;
    let Some(queries) = all.get(database) else { return Ok(()) };
    let queries = queries.as_object().ok_or_else(|| format!("`{database}` is not an object"))?;
    for (hash, query) in queries {
        let path = target.join(format!("query-{hash}.json"));
        fs::write(&path, query.to_string()).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// The file's content; empty when there is none.
///
/// # Errors
/// The reason, as text.
pub fn read(file: &Path) -> Result<Map<String, Value>, String> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(error) => return Err(error.to_string()),
    };
    match serde_json::from_str(&text).map_err(|error| error.to_string())? {
        Value::Object(map) => Ok(map),
        _ => Err("it is not a JSON object".into()),
    }
}

/// The queries in a directory that sqlx's macros have filled, keyed by hash.
///
/// # Errors
/// The reason, as text.
pub fn collect(dir: &Path) -> Result<Map<String, Value>, String> {
    let mut queries = Map::new();
    for entry in fs::read_dir(dir).map_err(|error| error.to_string())? {
        let path = entry.map_err(|error| error.to_string())?.path();
        let text = fs::read_to_string(&path).map_err(|error| error.to_string())?;
        let query: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let hash = query.get("hash").and_then(Value::as_str).ok_or("a query without a hash")?.to_owned();
        queries.insert(hash, query);
    }
    Ok(queries)
}

/// The text of the file: every object sorted by key, so that regenerating it gives the same bytes.
///
/// # Errors
/// The reason, as text.
pub fn render(mut all: Map<String, Value>) -> Result<String, String> {
    all.sort_keys();
    all.values_mut().for_each(Value::sort_all_objects);
    serde_json::to_string_pretty(&all).map(|text| text + "\n").map_err(|error| error.to_string())
}
