//! The on-disabled policies.

/// What a raw pointer or a system call meets in a mapping while its region is disabled.
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
    /// Loads and stores wait for `enable()`, and so do system calls; one that is waiting when a signal arrives for its
    /// thread ends with EFAULT, as do all later ones until `enable()`. On a file that no userfaultfd can register (a device's),
    /// and for a process that may have one for user-mode faults only, system calls get EFAULT at once. Needs a userfaultfd.
    Block,
}
