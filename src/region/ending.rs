//! The end of a region.

use super::Region;
use crate::protocol::error::RevokeError;
use crate::protocol::{State, WaitFor};
use std::sync::Arc;

impl Region {
    /// Ends it, as its drop does: mappings refuse for good.
    pub(crate) fn end(&self) {
        let shared = &self.shared;
        // Guards and pins keep what they promise: a background thread ends the region after them. A monitor that is
        // resolving a fault is no reason to leave the memory reachable when this returns.
        match self.change(State::Gone, WaitFor::readers_only()) {
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
