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
    /// ```
    /// use revocable_mmio::fault::FaultFlags;
    /// use revocable_mmio::{Caller, Completion, FaultQueue, OnDisabled, Submitted};
    /// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
    /// let queue = FaultQueue::new(64)?;
    /// let vcpu = Caller::new(FaultFlags::DEFAULT).on_disabled(OnDisabled::Block);
    /// assert!(matches!(region.fault_async(0, vcpu, &queue)?, Submitted::Ready)); // enabled: access it
    ///
    /// region.disable()?;
    /// let Submitted::Queued(token) = region.fault_async(0x10, vcpu, &queue)? else { unreachable!() };
    /// assert!(matches!(region.fault_async(0x20, vcpu, &queue)?, Submitted::Pending { id } if id == token.id())); // that page
    ///
    /// region.enable()?;
    /// let done: Completion = queue.next().ok_or("nothing has completed")?;
    /// assert_eq!((done.id, done.offset, done.result), (token.id(), 0, Ok(())));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Blocking
    /// Never waits for the region; waits for a moment on the lock of its list of faults.
    ///
    /// # Errors
    /// Nothing is queued.
    /// * [`SubmitError::Full`]: the queue is at its limit. Take completions, or wait with
    ///   [`fault_in`](Self::fault_in).
    /// * [`SubmitError::OutOfBounds`], [`SubmitError::Flags`]: the caller's mistake.
    /// * [`SubmitError::Forked`]: the region or the queue is the parent's.
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
