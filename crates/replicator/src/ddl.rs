//! Just enough SQL to say what a DDL statement is about. It is not a parser: what it does not know it says so.

/// The first `count` words of a statement, in upper case, without comments, quotes and punctuation between.
pub(crate) fn words(query: &str, count: usize) -> Vec<String> {
    tokens(query)
        .filter_map(|token| match token {
            Token::Word(word) => Some(word.to_ascii_uppercase()),
            _ => None,
        })
        .take(count)
        .collect()
}

/// What a statement from the binlog is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Statement {
    /// It begins a transaction.
    Begin,
    /// It commits one.
    Commit,
    /// It rolls one back (a non-transactional table was changed in it).
    Rollback,
    /// It sets or releases a savepoint.
    Savepoint,
    /// It rolls back to a savepoint: only non-transactional changes precede it in the binlog.
    RollbackToSavepoint,
    /// It belongs to an XA transaction.
    Xa,
    /// It changes rows: the binlog is not in row format.
    Dml,
    /// It changes a schema or tables.
    Ddl {
        /// The schema named in it; the session's default when there is none.
        schema: Option<String>,
        /// The table named in it, the first if there are several.
        table: Option<String>,
    },
    /// It concerns neither rows nor tables: users, grants, and the like.
    Other,
}

/// Says what `query` is.
pub(crate) fn classify(query: &str) -> Statement {
    let mut tokens = Peek(tokens(query).collect::<Vec<_>>(), 0);
    let verb = tokens.word().unwrap_or_default();
    match verb.as_str() {
        "BEGIN" => Statement::Begin,
        "START" => match tokens.word().as_deref() {
            Some("TRANSACTION") => Statement::Begin,
            _ => Statement::Other,
        },
        "COMMIT" => Statement::Commit,
        "ROLLBACK" => match tokens.word().as_deref() {
            Some("TO") => Statement::RollbackToSavepoint,
            _ => Statement::Rollback,
        },
        "SAVEPOINT" | "RELEASE" => Statement::Savepoint,
        "XA" => Statement::Xa,
        "INSERT" | "UPDATE" | "DELETE" | "REPLACE" | "LOAD" | "WITH" => Statement::Dml,
        "CREATE" | "ALTER" | "DROP" | "RENAME" | "TRUNCATE" => ddl(&verb, &mut tokens),
        _ => Statement::Other,
    }
}

fn ddl(verb: &str, tokens: &mut Peek<'_>) -> Statement {
    if verb == "TRUNCATE" {
        tokens.skip(&["TABLE"]);
        return on_table(tokens);
    }
    // Words that may stand between the verb and what it is about.
    let before =
        ["TEMPORARY", "OR", "REPLACE", "UNIQUE", "FULLTEXT", "SPATIAL", "ONLINE", "OFFLINE", "IGNORE"];
    while tokens.skip(&before) {}
    match tokens.word().as_deref() {
        Some("TABLE" | "TABLES") => {
            tokens.skip_if_exists();
            on_table(tokens)
        }
        Some("DATABASE" | "SCHEMA") => {
            tokens.skip_if_exists();
            Statement::Ddl { schema: tokens.name(), table: None }
        }
        Some("INDEX") => {
            // .. INDEX name [USING ..] ON table
            while let Some(token) = tokens.next() {
                if matches!(token, Token::Word(word) if word.eq_ignore_ascii_case("ON")) {
                    return on_table(tokens);
                }
            }
            Statement::Ddl { schema: None, table: None }
        }
        // `CREATE [ALGORITHM = ..] [DEFINER = ..] [SQL SECURITY ..] VIEW name`
        Some("VIEW" | "ALGORITHM" | "SQL") => view(tokens),
        Some("DEFINER") => {
            if tokens.0[tokens.1..]
                .iter()
                .any(|token| matches!(token, Token::Word(word) if word.eq_ignore_ascii_case("VIEW")))
                && !tokens.has_before(&["PROCEDURE", "FUNCTION", "TRIGGER", "EVENT"], "VIEW")
            {
                view(tokens)
            } else {
                Statement::Other
            }
        }
        _ => Statement::Other,
    }
}

fn view(tokens: &mut Peek<'_>) -> Statement {
    let from = tokens.1.saturating_sub(1);
    if let Some(at) = tokens.0[from..]
        .iter()
        .position(|token| matches!(token, Token::Word(word) if word.eq_ignore_ascii_case("VIEW")))
    {
        tokens.1 = from + at + 1;
    }
    tokens.skip_if_exists();
    on_table(tokens)
}

fn on_table(tokens: &mut Peek<'_>) -> Statement {
    let first = tokens.name();
    if tokens.punctuation('.') {
        let table = tokens.name();
        Statement::Ddl { schema: first, table }
    } else {
        Statement::Ddl { schema: None, table: first }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    /// A quoted name or text, with its quotes.
    Quoted(&'a str),
    Punctuation(char),
}

struct Peek<'a>(Vec<Token<'a>>, usize);

impl Peek<'_> {
    fn next(&mut self) -> Option<Token<'_>> {
        let token = self.0.get(self.1).copied();
        self.1 += usize::from(token.is_some());
        token
    }

    fn word(&mut self) -> Option<String> {
        match self.0.get(self.1) {
            Some(Token::Word(word)) => {
                self.1 += 1;
                Some(word.to_ascii_uppercase())
            }
            _ => None,
        }
    }

    fn skip(&mut self, words: &[&str]) -> bool {
        let found = matches!(self.0.get(self.1), Some(Token::Word(word)) if words.iter().any(|w| word.eq_ignore_ascii_case(w)));
        self.1 += usize::from(found);
        found
    }

    /// `IF EXISTS`, `IF NOT EXISTS`
    fn skip_if_exists(&mut self) {
        if self.skip(&["IF"]) {
            self.skip(&["NOT"]);
            self.skip(&["EXISTS"]);
        }
    }

    fn punctuation(&mut self, wanted: char) -> bool {
        let found = self.0.get(self.1) == Some(&Token::Punctuation(wanted));
        self.1 += usize::from(found);
        found
    }

    fn name(&mut self) -> Option<String> {
        let name = match *self.0.get(self.1)? {
            Token::Word(word) => word.to_owned(),
            Token::Quoted(quoted) => {
                let quote = quoted.chars().next()?;
                let doubled = format!("{quote}{quote}");
                let inner = quoted.strip_prefix(quote)?;
                inner.strip_suffix(quote).unwrap_or(inner).replace(&doubled, &quote.to_string())
            }
            Token::Punctuation(_) => return None,
        };
        self.1 += 1;
        Some(name)
    }

    fn has_before(&self, words: &[&str], end: &str) -> bool {
        self.0[self.1..]
            .iter()
            .take_while(|token| !matches!(token, Token::Word(word) if word.eq_ignore_ascii_case(end)))
            .any(|token| matches!(token, Token::Word(word) if words.iter().any(|w| word.eq_ignore_ascii_case(w))))
    }
}

/// The statement's tokens, comments left out. The inside of `/*! .. */` is code, as in `MySQL`.
fn tokens(query: &str) -> impl Iterator<Item = Token<'_>> {
    let mut rest = query;
    std::iter::from_fn(move || {
        loop {
            rest = rest.trim_start();
            let first = rest.chars().next()?;
            if let Some(after) = rest.strip_prefix("/*!") {
                rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
            } else if let Some(after) = rest.strip_prefix("*/") {
                rest = after;
            } else if let Some(after) = rest.strip_prefix("/*") {
                rest = after.split_once("*/").map_or("", |(_, after)| after);
            } else if first == '#' || rest.starts_with("-- ") || rest.starts_with("--\n") {
                rest = rest.split_once('\n').map_or("", |(_, after)| after);
            } else if matches!(first, '`' | '"' | '\'') {
                let (token, after) = rest.split_at(quoted_end(rest, first));
                rest = after;
                return Some(Token::Quoted(token));
            } else if is_word(first) {
                let (token, after) = rest.split_at(rest.find(|c| !is_word(c)).unwrap_or(rest.len()));
                rest = after;
                return Some(Token::Word(token));
            } else {
                rest = &rest[first.len_utf8()..];
                return Some(Token::Punctuation(first));
            }
        }
    })
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '$' | '@') || !c.is_ascii() && !c.is_whitespace()
}

/// Where a quoted token ends; a doubled quote is part of it.
fn quoted_end(text: &str, quote: char) -> usize {
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if c == '\\' && quote != '`' {
            chars.next();
        } else if c == quote {
            if chars.peek().is_some_and(|(_, next)| *next == quote) {
                chars.next();
            } else {
                return at + 1;
            }
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn on(schema: Option<&str>, table: Option<&str>) -> Statement {
        Statement::Ddl { schema: schema.map(str::to_owned), table: table.map(str::to_owned) }
    }

    #[test]
    fn statements_are_known_by_their_words() {
        let cases = [
            ("BEGIN", Statement::Begin),
            ("COMMIT /* implicit, from Xid_log_event */", Statement::Commit),
            ("SAVEPOINT `a`", Statement::Savepoint),
            ("ROLLBACK TO `a`", Statement::RollbackToSavepoint),
            ("XA START 'x'", Statement::Xa),
            ("/* hi */ insert into t values (1)", Statement::Dml),
            ("WITH c AS (SELECT 1) UPDATE t SET a = 1", Statement::Dml),
            ("GRANT ALL ON *.* TO x", Statement::Other),
            ("CREATE USER 'a'@'%'", Statement::Other),
            ("create table t (a int)", on(None, Some("t"))),
            ("CREATE TABLE IF NOT EXISTS `d``b`.`t.x` (a int)", on(Some("d`b"), Some("t.x"))),
            ("-- note\nALTER TABLE db . t ADD b int", on(Some("db"), Some("t"))),
            ("DROP TABLE IF EXISTS `t` /* generated by server */", on(None, Some("t"))),
            ("TRUNCATE t", on(None, Some("t"))),
            ("TRUNCATE TABLE db.t", on(Some("db"), Some("t"))),
            ("CREATE UNIQUE INDEX i USING BTREE ON db.t (a)", on(Some("db"), Some("t"))),
            ("DROP INDEX i ON t", on(None, Some("t"))),
            ("RENAME TABLE a TO b", on(None, Some("a"))),
            ("CREATE DATABASE `große`", on(Some("große"), None)),
            ("DROP SCHEMA IF EXISTS x", on(Some("x"), None)),
            ("CREATE OR REPLACE VIEW v AS SELECT 1", on(None, Some("v"))),
            (
                "CREATE ALGORITHM=UNDEFINED DEFINER=`root`@`%` SQL SECURITY DEFINER VIEW `d`.`v` AS SELECT 1",
                on(Some("d"), Some("v")),
            ),
            ("CREATE DEFINER=`root`@`%` VIEW `v` AS SELECT 1", on(None, Some("v"))),
            ("CREATE DEFINER=`root`@`%` PROCEDURE p() SELECT 1", Statement::Other),
            ("/*!40000 DROP TABLE */ t", on(None, Some("t"))),
        ];
        for (query, wanted) in cases {
            assert_eq!(classify(query), wanted, "{query}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(query in ".{0,60}", verb in "(CREATE|DROP|ALTER|TRUNCATE|RENAME)( TABLE| INDEX| VIEW| DEFINER)?") {
            classify(&query);
            classify(&format!("{verb} {query}"));
            words(&query, 3);
        }
    }
}
