//! The on-disabled policies.

/// What an access by raw pointer or in a system call gets in a mapping while its region is disabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum OnDisabled {
    /// SIGBUS with `BUS_ADRERR` and the exact byte in `si_addr`; EFAULT in a system call; what vfio-pci answers.
    /// This crate's accessors answer [`AccessError::Disabled`](crate::AccessError::Disabled).
    #[default]
    Sigbus,
    /// What a PCI Unsupported Request gives: loads read all-ones, stores are lost. A raw store may be read back through
    /// the same mapping until `enable()`, then it is gone; a page touched by one costs a page of memory until then.
    AllOnes,
    /// For user mode: loads and stores wait for `enable()`. System calls and virtual CPUs get EFAULT, whatever the privileges: the
    /// kernel would not sleep in a fault of its own while its thread has a signal pending, but fault again and again
    /// (`fault_signal_pending`). Needs a userfaultfd for user-mode faults (Linux 5.11, no privilege).
    Block,
}
