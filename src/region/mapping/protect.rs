//! Access rights of a part of a mapping.

use super::Mapping;
use crate::region::error::ProtectError;
use crate::sys::map::Prot;
use std::ops::Range;

impl Mapping {
    /// Changes the rights of a part of the mapping (offsets in bytes, multiples of the region's page size), at most to
    /// those that the mapping was made with. They stay through revocations. For a part that a guest or a device must not
    /// reach, such as the MSI-X table in a BAR.
    ///
    /// Under [`Strategy::Detach`](crate::Strategy) a mapping with several rights is revoked and restored as under Replace: its
    /// page tables are not kept.
    ///
    /// ```
    /// use revocable_mmio::{AccessError, Prot};
    /// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
    /// # let mapping = region.map(revocable_mmio::MapOptions::new())?;
    /// let page = region.page_size();
    /// mapping.protect(0..page, Prot::Read)?; // a table that the guest must not write
    /// assert!(matches!(mapping.write(0, 1_u32), Err(AccessError::Protected { .. })));
    /// mapping.write(page, 1_u32)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Blocking
    /// Waits for a change of state that is working on this very mapping.
    ///
    /// # Errors
    /// The rights are as before.
    /// * [`ProtectError::OutOfRange`], [`ProtectError::Unaligned`]: the part; give whole pages of the mapping.
    /// * [`ProtectError::ReadOnly`]: more rights than the mapping was made with.
    /// * [`ProtectError::Sys`]: out of mappings, since each part takes one. The message names the limit.
    /// * [`ProtectError::Forked`]: the mapping is the parent's.
    ///
    /// # Signal safety
    /// Not for signal handlers: it takes a lock.
    pub fn protect(&self, range: Range<usize>, rights: Prot) -> Result<(), ProtectError> {
        let (len, page) = (self.len(), self.served.region.page);
        if range.start >= range.end || range.end > len {
            return Err(ProtectError::OutOfRange { start: range.start, end: range.end, len });
        }
        if let Some(value) = [range.start, range.end].into_iter().find(|at| at % page != 0) {
            return Err(ProtectError::Unaligned { value, page });
        }
        if rights > self.served.view.spec.prot {
            return Err(ProtectError::ReadOnly);
        }
        if self.served.region.protocol.is_inherited() {
            return Err(ProtectError::Forked);
        }
        let part = self.served.view.range.part(range.start, range.len());
        self.served.view.protect(part, rights).map_err(ProtectError::Sys)
    }
}
