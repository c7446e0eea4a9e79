//! The strategies, as a user names them.

use std::fmt;

/// How a region's mappings are revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Strategy {
    /// Drop the page-table entries (`MADV_DONTNEED`); faults are resolved through userfaultfd. What vfio-pci does.
    /// Cost grows with the pages mapped, both ways. Needs Linux 5.14.
    Zap,
    /// Move the page tables aside (`MREMAP_DONTUNMAP`) and back. Cost does not grow with the pages, and nothing
    /// faults after `enable()`. Needs Linux 5.13, and the address space once more while disabled; not for hugetlb.
    Detach,
    /// Replace the mapping (`MAP_FIXED`) and map the file anew. For what userfaultfd cannot register: a BAR of a
    /// vfio device, any device file. Works everywhere; the kernel refills the page tables after `enable()`.
    Replace,
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Strategy::Zap => "zap",
            Strategy::Detach => "detach",
            Strategy::Replace => "replace",
        })
    }
}
