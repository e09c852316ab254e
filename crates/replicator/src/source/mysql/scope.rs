//! What of a server's changes a changefeed wants.

use super::bytes::{Bytes, Read};
use super::charset::{Charset, Collations};
use crate::filter::Filter;
use crate::part::Part;

/// Schemas of the server's own, which are never replicated.
const SYSTEM_SCHEMAS: [&str; 4] = ["mysql", "sys", "information_schema", "performance_schema"];

/// The database of the URI and the changefeed's filter.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    pub(super) db: Option<String>,
    /// `lower_case_table_names` is not 0.
    pub(super) ignores_case: bool,
    pub(super) filter: Filter,
    /// Which tables; `None`: all.
    pub(super) part: Option<Part>,
}

impl Scope {
    pub(super) fn wants_schema(&self, schema: &str) -> bool {
        match &self.db {
            _ if SYSTEM_SCHEMAS.iter().any(|system| system.eq_ignore_ascii_case(schema)) => false,
            None => true,
            Some(db) if self.ignores_case => db.to_lowercase() == schema.to_lowercase(),
            Some(db) => db == schema,
        }
    }

    /// What the filter leaves out is not even decoded.
    pub(super) fn wants_table(&self, schema: &str, table: &str) -> bool {
        self.wants_schema(schema)
            && self.filter.matches_table(schema, table)
            && self.has_table(schema, Some(table))
    }

    /// Whether what is done to this table, or to the schema, is in the part that is wanted.
    pub(super) fn has_table(&self, schema: &str, table: Option<&str>) -> bool {
        self.part.is_none_or(|part| match table {
            Some(table) => part.has_table(schema, table),
            None => part.is_first(),
        })
    }

    /// Whether a statement that was run in `schema`, and said to touch `touched`, may change what is wanted.
    pub(super) fn may_concern(&self, schema: &str, touched: Option<&[String]>) -> bool {
        match touched {
            Some(names) if !names.is_empty() => names.iter().any(|name| self.wants_schema(name)),
            // It does not say.
            _ => self.db.is_none() || schema.is_empty() || self.wants_schema(schema),
        }
    }
}

/// What a query event says about its session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Session {
    /// The collation of the statement's text.
    pub(super) client_collation: Option<u64>,
    /// The databases that the statement touches; `None` when it does not say, or when there are too many.
    pub(super) touched: Option<Vec<String>>,
}

impl Session {
    /// Reads the status variables of a query event. The library's reader loses all databases but the first.
    pub(super) fn read(raw: &[u8]) -> Read<Self> {
        const TOO_MANY: u8 = 254;
        let mut found = Self::default();
        let mut from = Bytes(raw);
        while !from.is_empty() {
            match from.byte()? {
                4 => {
                    found.client_collation = Some(from.little(2)?);
                    from.take(4)?;
                }
                12 => {
                    let count = from.byte()?;
                    if count == TOO_MANY {
                        continue;
                    }
                    let mut names = Vec::with_capacity(count.into());
                    for _ in 0..count {
                        let length = from.0.iter().position(|byte| *byte == 0).unwrap_or(from.0.len());
                        names.push(String::from_utf8_lossy(from.take(length)?).into_owned());
                        from.take(1)?;
                    }
                    found.touched = Some(names);
                }
                0 | 3 | 10 => drop(from.take(4)?),
                1 | 9 | 17 => drop(from.take(8)?),
                2 => {
                    from.counted(1)?;
                    from.take(1)?;
                }
                5 | 6 => drop(from.counted(1)?),
                7 | 8 | 18 => drop(from.take(2)?),
                11 => {
                    from.counted(1)?;
                    from.counted(1)?;
                }
                13 => drop(from.take(3)?),
                16 | 19 | 20 => drop(from.take(1)?),
                // Of a later server: what comes after it cannot be told.
                _ => break,
            }
        }
        Ok(found)
    }

    /// The character set of the statement's text.
    pub(super) fn charset(&self, collations: &Collations) -> Charset {
        self.client_collation.map_or(Charset::Utf8, |collation| collations.charset(collation))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scope(db: Option<&str>, ignores_case: bool) -> Scope {
        Scope {
            db: db.map(str::to_owned),
            ignores_case,
            filter: Filter::new(["*.*", "!*.tmp"], false).unwrap(),
            part: None,
        }
    }

    #[test]
    fn one_database_or_all_but_the_servers_own() {
        let all = scope(None, false);
        assert!(all.wants_table("a", "t") && !all.wants_table("a", "tmp"));
        assert!(!all.wants_schema("mysql") && !all.wants_schema("SYS"));
        let one = scope(Some("Shop"), false);
        assert!(one.wants_schema("Shop") && !one.wants_schema("shop") && !one.wants_schema("b"));
        assert!(scope(Some("Shop"), true).wants_schema("shop"));
    }

    #[test]
    fn statements_concern_what_they_touch() {
        let one = scope(Some("shop"), false);
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert!(one.may_concern("other", Some(&names(&["other", "shop"]))));
        assert!(!one.may_concern("shop", Some(&names(&["other"]))));
        assert!(one.may_concern("shop", None) && !one.may_concern("other", None));
        assert!(one.may_concern("", None) && scope(None, false).may_concern("other", None));
    }

    #[test]
    fn status_variables_are_read() {
        let raw = b"\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\x06\x03std\x04\xFF\0\xFF\0\xFF\0\x0C\x02a\0bb\0\x0D\0\0\0";
        let session = Session::read(raw).unwrap();
        assert_eq!(session.client_collation, Some(255));
        assert_eq!(session.touched, Some(vec!["a".to_owned(), "bb".to_owned()]));
        assert_eq!(Session::read(b"\x0C\xFE").unwrap().touched, None);
    }

    proptest! {
        #[test]
        fn no_status_variables_panic(raw in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = Session::read(&raw);
        }
    }
}
