//! `filter.rules`: which tables are replicated. A subset of `TiDB`'s table filter syntax.
//!
//! A rule is `schema.table`; in each part `*` stands for any text and `?` for any one character; a part may be
//! quoted with backquotes or double quotes (then it is taken literally); a leading `!` excludes. The last rule
//! that matches decides; what no rule matches is left out. Character classes, regular expressions and `@file`
//! are refused.

use std::str::Chars;

use capture_runtime::task::TaskError;
use serde_json::Value;

/// A compiled `filter.rules`.
#[derive(Clone, Debug)]
pub struct Filter {
    rules: Vec<Rule>,
    case_sensitive: bool,
}

#[derive(Clone, Debug)]
struct Rule {
    excludes: bool,
    schema: Pattern,
    table: Pattern,
}

#[derive(Clone, Debug)]
struct Pattern(Vec<Piece>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Char(char),
    AnyChar,
    AnyText,
}

impl Filter {
    /// Compiles rules.
    ///
    /// # Errors
    /// `CDC:ErrFilterRuleInvalid` with the rule and what is wrong with it.
    pub fn new<'r>(
        rules: impl IntoIterator<Item = &'r str>,
        case_sensitive: bool,
    ) -> Result<Self, TaskError> {
        let rules = rules
            .into_iter()
            .map(|rule| {
                Rule::parse(rule, case_sensitive).map_err(|reason| {
                    TaskError::fatal(
                        "CDC:ErrFilterRuleInvalid",
                        format!(
                            "filter rule is invalid: replica_config.filter.rules: `{}`: {reason}",
                            rule.escape_debug()
                        ),
                    )
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { rules, case_sensitive })
    }

    /// The filter of a changefeed's configuration.
    ///
    /// # Errors
    /// As [`Self::new`]; `CDC:ErrAPIInvalidParam` when the value has another shape.
    pub fn from_config(config: &serde_json::Map<String, Value>) -> Result<Self, TaskError> {
        let case_sensitive = config.get("case_sensitive").and_then(Value::as_bool).unwrap_or(false);
        let rules = match config.get("filter").and_then(|filter| filter.get("rules")) {
            None | Some(Value::Null) => return Self::new(["*.*"], case_sensitive),
            Some(rules) => rules,
        };
        let texts: Option<Vec<&str>> =
            rules.as_array().and_then(|rules| rules.iter().map(Value::as_str).collect());
        let texts = texts.ok_or_else(|| {
            TaskError::fatal(
                "CDC:ErrAPIInvalidParam",
                "invalid api parameter: replica_config.filter.rules must be a list of strings, as in [\"db.*\"]",
            )
        })?;
        let texts = if texts.is_empty() { vec!["*.*"] } else { texts };
        Self::new(texts, case_sensitive)
    }

    /// Whether the rows of a table are replicated.
    pub fn matches_table(&self, schema: &str, table: &str) -> bool {
        let (schema, table) = (self.fold(schema), self.fold(table));
        let decisive =
            self.rules.iter().rev().find(|rule| rule.schema.matches(&schema) && rule.table.matches(&table));
        decisive.is_some_and(|rule| !rule.excludes)
    }

    /// Whether changes of a schema itself are replicated: some table of it could be.
    pub fn matches_schema(&self, schema: &str) -> bool {
        let schema = self.fold(schema);
        let decisive = self.rules.iter().rev().find(|rule| {
            rule.schema.matches(&schema) && (!rule.excludes || rule.table.0 == [Piece::AnyText])
        });
        decisive.is_some_and(|rule| !rule.excludes)
    }

    fn fold(&self, name: &str) -> String {
        if self.case_sensitive { name.to_owned() } else { name.to_lowercase() }
    }
}

impl Rule {
    fn parse(rule: &str, case_sensitive: bool) -> Result<Self, String> {
        let trimmed = rule.trim();
        let (excludes, rest) = match trimmed.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, trimmed),
        };
        if rest.starts_with('@') {
            return Err("importing rules from a file is not supported; list them".to_owned());
        }
        let folded = if case_sensitive { rest.to_owned() } else { rest.to_lowercase() };
        let mut chars = folded.chars();
        let schema = Pattern::parse(&mut chars, Some('.'))?;
        let table = Pattern::parse(&mut chars, None)?;
        Ok(Self { excludes, schema, table })
    }
}

impl Pattern {
    /// Parses up to `end`, which it eats.
    fn parse(chars: &mut Chars<'_>, end: Option<char>) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let what = if end.is_some() { "schema" } else { "table" };
        let closed = loop {
            match chars.next() {
                None => break end.is_none(),
                Some(c) if Some(c) == end => break true,
                Some(quote @ ('`' | '"')) => quoted(chars, quote, &mut pieces)?,
                Some('*') if pieces.last() != Some(&Piece::AnyText) => pieces.push(Piece::AnyText),
                Some('*') => {}
                Some('?') => pieces.push(Piece::AnyChar),
                Some(c) if c.is_ascii_alphanumeric() || matches!(c, '_' | '$') || !c.is_ascii() => {
                    pieces.push(Piece::Char(c));
                }
                Some(c) => {
                    return Err(format!(
                        "`{}` is not allowed here: a rule is schema.table with * and ?; quote other names with backquotes; \
                         [a-z], /regular expressions/ and \\ are not supported",
                        c.escape_debug()
                    ));
                }
            }
        };
        if !closed {
            return Err("it has no table part; a rule is schema.table, as in db.*".to_owned());
        }
        if pieces.is_empty() {
            return Err(format!("its {what} part is empty; * stands for any"));
        }
        Ok(Self(pieces))
    }

    /// Linear in the text times the pattern: on a mismatch only the last `*` takes one character more.
    fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        let (mut at, mut piece) = (0, 0);
        let mut retry: Option<(usize, usize)> = None;
        while at < text.len() {
            match self.0.get(piece) {
                Some(Piece::AnyText) => {
                    piece += 1;
                    retry = Some((piece, at));
                }
                Some(Piece::AnyChar) => (piece, at) = (piece + 1, at + 1),
                Some(Piece::Char(c)) if *c == text[at] => (piece, at) = (piece + 1, at + 1),
                _ => {
                    let Some((after_star, taken)) = retry else { return false };
                    retry = Some((after_star, taken + 1));
                    (piece, at) = (after_star, taken + 1);
                }
            }
        }
        self.0[piece..].iter().all(|piece| *piece == Piece::AnyText)
    }
}

fn quoted(chars: &mut Chars<'_>, quote: char, pieces: &mut Vec<Piece>) -> Result<(), String> {
    loop {
        match chars.next() {
            None => return Err(format!("a {quote} is not closed")),
            Some(c) if c == quote => {
                if chars.as_str().starts_with(quote) {
                    chars.next();
                    pieces.push(Piece::Char(quote));
                } else {
                    return Ok(());
                }
            }
            Some(c) => pieces.push(Piece::Char(c)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filter(rules: &[&str]) -> Filter {
        Filter::new(rules.iter().copied(), false).unwrap()
    }

    #[test]
    fn the_last_rule_that_matches_decides() {
        let filter = filter(&["shop.*", "!shop.tmp_?", "shop.tmp_x", "`my-db`.`a.b`"]);
        for (schema, table, wanted) in [
            ("shop", "item", true),
            ("SHOP", "Item", true),
            ("shop", "tmp_a", false),
            ("shop", "tmp_x", true),
            ("shop", "tmp_ab", true),
            ("other", "item", false),
            ("my-db", "a.b", true),
            ("my-db", "a", false),
        ] {
            assert_eq!(filter.matches_table(schema, table), wanted, "{schema}.{table}");
        }
        assert!(filter.matches_schema("shop") && filter.matches_schema("my-db"));
        assert!(!filter.matches_schema("other"));
        assert!(!self::filter(&["*.*", "!tmp.*"]).matches_schema("tmp"));
    }

    #[test]
    fn case_counts_when_asked() {
        let filter = Filter::new(["Shop.*"], true).unwrap();
        assert!(filter.matches_table("Shop", "a") && !filter.matches_table("shop", "a"));
    }

    #[test]
    fn what_is_not_supported_is_refused_with_the_rule() {
        for bad in
            ["shop", "shop.", ".t", "a.b.c", "a.[a-z]", "/a/.b", "@rules.txt", "`a.b", "", "!", "a-b.c"]
        {
            let error = Filter::new([bad], false).unwrap_err();
            assert_eq!(error.code, "CDC:ErrFilterRuleInvalid");
            assert!(error.message.contains(&format!("`{bad}`")), "{error}");
        }
    }

    proptest! {
        #[test]
        fn patterns_agree_with_the_definition(pattern in "[ab*?]{1,7}", text in "[ab]{0,8}") {
            fn slow(pattern: &[u8], text: &[u8]) -> bool {
                match (pattern.split_first(), text.split_first()) {
                    (None, None) => true,
                    (Some((b'*', rest)), _) => slow(rest, text) || !text.is_empty() && slow(pattern, &text[1..]),
                    (Some((b'?', p)), Some((_, t))) => slow(p, t),
                    (Some((c, p)), Some((d, t))) => c == d && slow(p, t),
                    _ => false,
                }
            }
            let filter = filter(&[&format!("d.{pattern}")]);
            prop_assert_eq!(filter.matches_table("d", &text), slow(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn no_rule_panics(rule in ".{0,20}", schema in ".{0,5}") {
            if let Ok(filter) = Filter::new([rule.as_str()], false) {
                filter.matches_table(&schema, "t");
            }
        }
    }
}
