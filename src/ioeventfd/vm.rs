//! The virtual machine: what turns a guest's stores into signals.

use std::io;
use std::os::fd::BorrowedFd;

/// The width of one access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// 1 byte.
    One,
    /// 2 bytes.
    Two,
    /// 4 bytes.
    Four,
    /// 8 bytes.
    Eight,
}

impl Width {
    /// The width in bytes.
    pub fn bytes(self) -> usize {
        match self {
            Width::One => 1,
            Width::Two => 2,
            Width::Four => 4,
            Width::Eight => 8,
        }
    }
}

impl From<Width> for u32 {
    /// The width in bytes.
    fn from(width: Width) -> Self {
        match width {
            Width::One => 1,
            Width::Two => 2,
            Width::Four => 4,
            Width::Eight => 8,
        }
    }
}

/// Guest stores that signal an eventfd.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct IoEvent<'a> {
    /// The guest physical address.
    pub gpa: u64,
    /// The width of the stores.
    pub width: Width,
    /// Only stores of this value; `None`: of any.
    pub value: Option<u64>,
    /// The eventfd.
    pub eventfd: BorrowedFd<'a>,
}

/// Registers ioeventfds with a virtual machine. Implemented for `kvm_ioctls::VmFd` with feature `kvm`.
///
/// It is called without any lock of the crate, in the thread that changes the region's state, adds, moves or removes. A
/// panic is a failure; what panicked while it was registered is withdrawn, in case it is there. Calls of [`IoEventFds`]
/// from inside are carried out when the outer call returns, which then returns what is refused.
///
/// [`IoEventFds`]: super::IoEventFds
pub trait SetIoEventFd: Send + Sync {
    /// From now on the stores that `event` describes signal its eventfd.
    ///
    /// # Errors
    /// The hypervisor's error; nothing is changed.
    fn assign(&self, event: &IoEvent<'_>) -> io::Result<()>;

    /// Ends what [`assign`](Self::assign) began, with the same `event`.
    ///
    /// # Errors
    /// The hypervisor's error; nothing is changed.
    fn withdraw(&self, event: &IoEvent<'_>) -> io::Result<()>;
}
