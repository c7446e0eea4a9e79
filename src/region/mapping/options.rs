//! The options of a mapping.

use crate::protocol::policy::OnDisabled;
use crate::region::core::RegionCore;
use crate::region::error::MapError;

/// How to map a region; see [`Region::map`](crate::Region::map).
///
/// ```
/// use revocable_mmio::{AccessError, MapOptions, OnDisabled};
/// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
/// let page = region.page_size();
/// let window = region.map(MapOptions::new().offset(page).len(2 * page).read_only().on_disabled(OnDisabled::AllOnes))?;
/// assert_eq!(window.read::<u32>(0)?, 0);
/// assert!(matches!(window.write(0, 1_u32), Err(AccessError::ReadOnly { .. })));
///
/// region.disable()?;
/// assert_eq!(window.read::<u32>(0)?, 0xffff_ffff); // a PCI Unsupported Request
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct MapOptions {
    offset: usize,
    len: Option<usize>,
    pub(super) read_only: bool,
    pub(super) on_disabled: OnDisabled,
    pub(super) accessors_only: bool,
}

impl MapOptions {
    /// The whole region, read-write, policy [`OnDisabled::Sigbus`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Where in the region the mapping starts, in bytes, a multiple of the region's page size.
    pub fn offset(mut self, offset: usize) -> Self {
        self.offset = offset;
        self
    }

    /// How long the mapping is, in bytes, a multiple of the region's page size. Default: up to the region's end.
    pub fn len(mut self, len: usize) -> Self {
        self.len = Some(len);
        self
    }

    /// Loads only.
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// What accesses get while the region is disabled.
    pub fn on_disabled(mut self, policy: OnDisabled) -> Self {
        self.on_disabled = policy;
        self
    }

    /// Maps for this crate's accessors only (Zap): the faulting thread resolves its own fault, with no monitor and no
    /// hand-over. A raw pointer or a system call that touches a page which is not mapped gets SIGBUS or EFAULT, even while
    /// the region is enabled. Under Detach and Replace the kernel resolves faults and this changes nothing.
    ///
    /// ```
    /// use revocable_mmio::MapOptions;
    /// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
    /// let mapping = region.map(MapOptions::new().accessors_only())?;
    /// mapping.write(0, 7_u32)?; // fine; a store by `as_ptr()` could be SIGBUS
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn accessors_only(mut self) -> Self {
        self.accessors_only = true;
        self
    }

    /// Offset and length in the region, checked.
    pub(super) fn part(&self, region: &RegionCore) -> Result<(usize, usize), MapError> {
        let out = |len| MapError::OutOfRange { offset: self.offset, len, region: region.len };
        let rest = region.len.checked_sub(self.offset).ok_or(out(self.len.unwrap_or(0)))?;
        let len = self.len.unwrap_or(rest);
        if len == 0 {
            return Err(MapError::Empty);
        }
        for (what, value) in [("offset", self.offset), ("length", len)] {
            if value % region.page != 0 {
                return Err(MapError::Unaligned { what, value, page: region.page });
            }
        }
        if len > rest { Err(out(len)) } else { Ok((self.offset, len)) }
    }
}
