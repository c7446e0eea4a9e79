//! Faults that are requested now and completed later.

use super::Region;
use crate::protocol::async_fault::{FaultQueue, Submitted};
use crate::protocol::caller::Caller;
use crate::protocol::error::SubmitError;

impl Region {
    /// Asks for the page at `offset` without waiting for it. Returns [`Submitted::Ready`] if the region is enabled and not
    /// busy. Otherwise returns a token that completes once the region is enabled, or once it is certain that it will not
    /// be. [`Caller::on_disabled`] says whether a disabled region is waited for.
    ///
    /// # Blocking
    /// Never waits for the region; waits for a moment on the lock of its list of faults.
    ///
    /// # Errors
    /// Nothing is queued: see [`SubmitError`].
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn fault_async<'a>(
        &self,
        offset: usize,
        caller: impl Into<Caller<'a>>,
        queue: &FaultQueue,
    ) -> Result<Submitted, SubmitError> {
        let caller = caller.into();
        caller.flags.validate()?;
        let shared = &self.shared;
        if shared.protocol.is_inherited() || queue.is_inherited() {
            return Err(SubmitError::Forked);
        }
        if offset >= shared.len {
            return Err(SubmitError::OutOfBounds { offset, len: shared.len });
        }
        let offset = offset / shared.page * shared.page;
        shared.pending.submit(offset, caller.on_disabled, queue, || shared.protocol.phase())
    }
}
