//! The end of a region.

use super::Region;
use crate::protocol::error::RevokeError;
use crate::protocol::{State, WaitFor};
use std::sync::Arc;
use std::time::Duration;

/// How long a drop waits for threads that are resolving a fault. A busy machine keeps them from running for a while, and the
/// memory is to be out of reach when the drop returns; a debugger, or a file system that does not answer, may keep them for
/// ever.
const READERS: Duration = Duration::from_secs(10);

impl Region {
    /// Ends it, as its drop does: mappings refuse for good.
    pub(crate) fn end(&self) {
        let shared = &self.shared;
        // Guards and pins keep what they promise: a background thread ends the region after them.
        match self.change(State::Gone, WaitFor::readers_for(READERS)) {
            Ok(_) | Err(RevokeError::Gone | RevokeError::Forked) => {}
            Err(e) => {
                let later = Arc::clone(shared);
                let spawned = crate::sys::thread::spawn("mmio-drop", move || later.end());
                // No thread can be started: waiting here is better than leaving the memory reachable, unless the wait would
                // never end.
                if spawned.is_err() && !matches!(e, RevokeError::WouldDeadlock { .. } | RevokeError::Reentrant) {
                    shared.end();
                }
            }
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.end();
    }
}
