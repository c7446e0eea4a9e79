//! The strategies of revocation.

use std::fmt;

/// How a region's mappings are revoked. The guide has a [table of decisions](crate::guide::choosing).
///
/// ```
/// use revocable_mmio::{BuildError, Region, Strategy};
///
/// println!("{}", Region::builder(4096).build()?.strategy()); // the best that works here
///
/// match Region::builder(4096).strategy(Strategy::Zap).build() {
///     Ok(region) => assert_eq!(region.strategy(), Strategy::Zap),
///     Err(BuildError::Strategy { why, .. }) => println!("{why}"),
///     Err(e) => return Err(e.into()),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Strategy {
    /// Drops the page-table entries (`MADV_DONTNEED`), as vfio-pci does; faults are resolved through userfaultfd. The cost
    /// grows with the mapped pages, both ways. Needs Linux 5.14.
    Zap,
    /// Moves the page tables aside (`MREMAP_DONTUNMAP`) and back. The cost does not grow with the pages, and nothing faults
    /// after `enable()`. Needs Linux 5.13, and the address space once more while disabled; not for hugetlb.
    Detach,
    /// Replaces the mapping (`MAP_FIXED`) and maps the file anew. For files that userfaultfd cannot register: a BAR of a
    /// vfio device, any device file. Works everywhere; the kernel refills the page tables after `enable()`.
    Replace,
    /// Empties the file itself, which takes the memory away from every process that maps it, and from everything that has
    /// pinned its pages, and fills it again. The region's own mappings are revoked as by `Replace`. The cost grows with the
    /// size, by a copy each way. For regions that are [shared](crate::RegionBuilder::shared), and only if asked for.
    Withdraw,
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Strategy::Zap => "zap",
            Strategy::Detach => "detach",
            Strategy::Replace => "replace",
            Strategy::Withdraw => "withdraw",
        })
    }
}
