//! The controller: what the elected capture does.
//!
//! [`ControllerObserver`] is its fenced view of the store; [`run`] is what it does with it: look, plan, act. It holds no
//! state that a successor would miss: every step is restartable from the database.

mod observer;
mod processors;
mod work;

pub use observer::ControllerObserver;
pub use work::{callback, run};
