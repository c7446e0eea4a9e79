//! Every system call of the crate, one file per family; nothing outside of here makes one.

pub(crate) mod barrier;
#[cfg(not(revocable_model))]
pub(crate) mod futex;
pub(crate) mod thread;
