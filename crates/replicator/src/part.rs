//! Parts of a whole that has too many pieces, or none that could be listed: `2/4` is the second of four.

use std::fmt;
use std::str::FromStr;

use capture_runtime::task::{Share, TaskError};
use metadata_api::model::TableId;

/// Part `number` of `of`, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    number: u32,
    of: u32,
}

impl Part {
    /// The part with this index, counted from 0.
    pub(crate) fn new(index: u32, of: u32) -> Self {
        Self { number: index + 1, of }
    }

    /// All parts, as what a changefeed is split by.
    pub(crate) fn all(of: u32) -> Vec<TableId> {
        (0..of).map(|index| TableId(Self::new(index, of).to_string())).collect()
    }

    /// The part that a share names.
    ///
    /// # Errors
    /// [`TaskError`] when it names none.
    pub(crate) fn of(share: &Share) -> Result<Self, TaskError> {
        share.table.0.parse().map_err(|()| {
            let message = format!(
                "the share `{}` is none of this source's: it must be a part, as 1/2, or a table",
                share.table
            );
            TaskError::fatal("CDC:ErrChangefeedUnretryable", message)
        })
    }

    /// Whether it is the part of what has this number.
    pub(crate) fn has_number(self, number: u64) -> bool {
        number % u64::from(self.of) == u64::from(self.number - 1)
    }

    /// Whether it is the part of this table. Upper and lower case are one, so that it does not matter how a server compares.
    pub(crate) fn has_table(self, schema: &str, table: &str) -> bool {
        let name = format!("{}\0{}", schema.to_lowercase(), table.to_lowercase());
        self.has_number(crc32fast::hash(name.as_bytes()).into())
    }

    /// Whether it is the part of what belongs to no table.
    pub(crate) fn is_first(self) -> bool {
        self.number == 1
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

impl FromStr for Part {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (number, of) = text.split_once('/').ok_or(())?;
        let part = Self { number: number.parse().map_err(drop)?, of: of.parse().map_err(drop)? };
        (1..=part.of).contains(&part.number).then_some(part).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn everything_is_in_exactly_one_part(of in 1..40_u32, number: u64, schema in "[a-zA-Z]{1,4}", table in "[a-zA-Z]{0,4}") {
            let parts: Vec<Part> = Part::all(of).iter().map(|id| id.0.parse().unwrap()).collect();
            prop_assert_eq!(parts.len(), of as usize);
            prop_assert_eq!(parts.iter().filter(|part| part.has_number(number)).count(), 1);
            prop_assert_eq!(parts.iter().filter(|part| part.is_first()).count(), 1);
            let with: Vec<&Part> = parts.iter().filter(|part| part.has_table(&schema, &table)).collect();
            prop_assert_eq!(with.len(), 1);
            prop_assert!(with[0].has_table(&schema.to_uppercase(), &table.to_lowercase()));
        }
    }

    #[test]
    fn what_is_no_part_is_refused() {
        for text in ["", "1", "0/2", "3/2", "1/0", "-1/2", "a/b", "1/2/3"] {
            assert!(text.parse::<Part>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_table_stays_in_its_part() {
        // Captures of different versions must agree.
        let mine: Vec<u32> = (0..8).filter(|n| Part::new(*n, 8).has_table("shop", "orders")).collect();
        assert_eq!(mine, [2]);
    }
}
