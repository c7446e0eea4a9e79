//! Asking a device whether its memory is on.
//!
//! The kernel revokes a BAR of vfio-pci by itself, as the device's registers say. The region is enabled all the same, and an
//! access that fails there has no other way to find out why.

use crate::sys::known::KnownFile;
use crate::users::{Theirs, guarded};
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

type Ask = dyn Fn(BorrowedFd<'_>) -> bool + Send + Sync;

/// The user's question to the device.
pub(crate) struct Question(Theirs<Ask>);

impl Question {
    pub(crate) fn new(ask: impl Fn(BorrowedFd<'_>) -> bool + Send + Sync + 'static) -> Self {
        Self(Theirs::new(Arc::new(ask)))
    }

    /// True if the device says that its memory is off.
    pub(crate) fn says_off(&self, device: &KnownFile) -> bool {
        device.get().is_ok_and(|device| guarded(|| (self.0)(device)) == Some(false))
    }
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Question")
    }
}

/// Closes a file that threads may be asking about. Each of them lets go of it when it has its answer, so that the last
/// reference is dropped here, not in a signal handler, and the device is free when this returns.
pub(crate) fn retire(mut file: Arc<KnownFile>) {
    /// A question that takes longer than this keeps the device until its end.
    const PATIENCE: Duration = Duration::from_secs(1);
    let began = Instant::now();
    while let Err(asked) = Arc::try_unwrap(file) {
        file = asked;
        if began.elapsed() > PATIENCE {
            return;
        }
        std::thread::yield_now();
    }
}
