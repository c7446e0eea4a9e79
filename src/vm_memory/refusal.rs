//! The crate's errors as vm-memory's.

use ::vm_memory::GuestMemoryError;

pub(super) fn refused(error: impl std::error::Error + Send + Sync + 'static) -> GuestMemoryError {
    GuestMemoryError::IOError(std::io::Error::other(error))
}
