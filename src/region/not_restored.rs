//! What was told that the memory is back, and could not make it reachable again: the caller of `enable()` gets its error.

use super::notify::NotifyError;
use crate::protocol::error::RevokeError;
use crate::sync::inside::Mutex;
use crate::users::discard;

/// The first such error of a change of the region's state.
#[derive(Default)]
pub(crate) struct NotRestored(Mutex<Option<NotifyError>>);

impl NotRestored {
    /// Called by the thread that changes the state, while it tells that the memory is back.
    pub(crate) fn report(&self, error: NotifyError) {
        let mut first = self.0.lock();
        let later = if first.is_some() { Some(error) } else { first.replace(error) };
        drop(first);
        // It may be a user's.
        discard(later);
    }

    pub(crate) fn take(&self) -> Option<RevokeError> {
        let first = self.0.lock().take();
        first.map(|source| RevokeError::NotRestored { source })
    }
}
