//! A real device behind the model: its configuration space, and what it says about its memory.

use crate::sys::SysError;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// A real device. It calls nothing of the crate, and may take its time: only other writers of its registers wait for a write,
/// and only the caller of a read waits for that.
pub(crate) trait Hardware: Send + Sync {
    /// Reads configuration space.
    fn read(&self, at: usize, into: &mut [u8]) -> Result<(), SysError>;
    /// Writes it.
    fn write(&self, at: usize, bytes: &[u8]) -> Result<(), SysError>;
    /// True if its memory is on, as its registers say.
    fn is_memory_enabled(&self, device: BorrowedFd<'_>) -> bool;
}

/// The real device of a model, if it has one.
#[derive(Clone, Default)]
pub(super) struct Real(pub(super) Option<Arc<dyn Hardware>>);

impl fmt::Debug for Real {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Real" } else { "None" })
    }
}
