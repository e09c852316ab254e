//! A value that many wait for.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Like `tokio::sync::watch`, but whoever waits is woken in the order of asking. (`watch` wakes its waiters in an order of
/// its own dice, and no seed repeats that.)
pub(crate) struct Signal<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T> Signal<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value: Mutex::new(value), changed: Notify::new() }
    }

    /// The value now.
    pub(crate) fn get(&self) -> T
    where
        T: Copy,
    {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn modify(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.lock());
        self.changed.notify_waiters();
    }

    /// Waits until the value is as it should be, and gives it.
    pub(crate) async fn wait_for(&self, is_right: impl Fn(&T) -> bool) -> T
    where
        T: Copy,
    {
        loop {
            let changed = self.changed.notified();
            let value = self.get();
            if is_right(&value) {
                return value;
            }
            changed.await;
        }
    }
}

impl<T: Copy + fmt::Debug> fmt::Debug for Signal<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}
