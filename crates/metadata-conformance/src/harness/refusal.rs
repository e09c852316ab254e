//! Refusals: which error, and that nothing was changed.

use std::fmt::Debug;
use std::future::Future;
use std::panic::Location;

use metadata_api::{MetadataError, Result};

use super::{Cluster, dump};

/// Which error a call must be refused with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// [`MetadataError::Fenced`].
    Fenced,
    /// [`MetadataError::Conflict`].
    Conflict,
    /// [`MetadataError::NotFound`].
    NotFound,
    /// [`MetadataError::AlreadyExists`].
    AlreadyExists,
    /// [`MetadataError::InvalidTransition`].
    InvalidTransition,
    /// [`MetadataError::InvalidArgument`] of whatever field.
    InvalidArgument,
    /// [`MetadataError::InvalidArgument`] of this field.
    InvalidField(&'static str),
    /// [`MetadataError::Corrupt`] of this table.
    Corrupt(&'static str),
}

impl Refusal {
    /// Whether `error` is this refusal.
    pub fn is(self, error: &MetadataError) -> bool {
        match (self, error) {
            (Self::Fenced, MetadataError::Fenced { .. })
            | (Self::Conflict, MetadataError::Conflict { .. })
            | (Self::NotFound, MetadataError::NotFound { .. })
            | (Self::AlreadyExists, MetadataError::AlreadyExists { .. })
            | (Self::InvalidTransition, MetadataError::InvalidTransition { .. })
            | (Self::InvalidArgument, MetadataError::InvalidArgument { .. }) => true,
            (Self::InvalidField(wanted), MetadataError::InvalidArgument { field, .. }) => wanted == *field,
            (Self::Corrupt(wanted), MetadataError::Corrupt { table, .. }) => wanted == *table,
            _ => false,
        }
    }
}

/// Checks that `result` is the refusal `wanted`, and gives its text.
#[track_caller]
pub(crate) fn assert_refused<T: Debug>(result: Result<T>, wanted: Refusal) -> String {
    match result {
        Err(error) if wanted.is(&error) => error.to_string(),
        other => panic!("want {wanted:?}, got {other:?}"),
    }
}

/// Whether `result` is the refusal `wanted`; panics on any *other* error.
#[track_caller]
pub(crate) fn refused<T: Debug>(result: &Result<T>, wanted: Refusal) -> bool {
    match result {
        Ok(_) => false,
        Err(error) if wanted.is(error) => true,
        Err(error) => panic!("want success or {wanted:?}, got {error:?}"),
    }
}

impl Cluster {
    /// Checks that `call` is refused as `wanted`, with everything readable as it was, the revision included. Gives the
    /// error's text.
    #[track_caller]
    pub fn refuses<T: Debug>(
        &self,
        wanted: Refusal,
        call: impl Future<Output = Result<T>>,
    ) -> impl Future<Output = String> {
        let caller = Location::caller();
        async move {
            let before = self.dump().await;
            let text = match call.await {
                Err(error) if wanted.is(&error) => error.to_string(),
                other => panic!("at {caller}: want {wanted:?}, got {other:?}"),
            };
            let changes = before.changes_to(&self.dump().await);
            assert!(changes.is_empty(), "at {caller}: refused ({text}), and yet changed:\n{changes}");
            text
        }
    }

    /// Checks that `call` succeeds and changes no row (the revision may move), and gives what it returned.
    #[track_caller]
    pub fn changes_nothing<T: Debug>(
        &self,
        call: impl Future<Output = Result<T>>,
    ) -> impl Future<Output = T> {
        let caller = Location::caller();
        async move {
            let before = dump::dump_rows(&*self.store).await;
            let answer = match call.await {
                Ok(answer) => answer,
                Err(error) => panic!("at {caller}: want success, got {error:?}"),
            };
            let changes = before.changes_to(&dump::dump_rows(&*self.store).await);
            assert!(changes.is_empty(), "at {caller}: it should have changed nothing, but:\n{changes}");
            answer
        }
    }
}
