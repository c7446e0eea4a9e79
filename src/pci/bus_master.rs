//! A device that becomes a bus master, or ceases to be one.

use super::dma::DmaSpace;
use super::error::PciError;
use crate::sync::wait::Patience;

impl DmaSpace {
    /// Whether the device of this space is a bus master: if not, nothing is in the IOMMU.
    /// [`PciBuilder::bus_master`](super::PciBuilder::bus_master) sets it with the bit of PCI_COMMAND. What is mapped
    /// meanwhile is put in once it is set.
    ///
    /// # Blocking
    /// As [`map`](Self::map).
    ///
    /// # Errors
    /// The first mapping that could not be put back; the others are. EPERM in a forked child.
    pub fn set_bus_master(&self, master: bool) -> Result<(), PciError> {
        self.set_bus_master_within(master, Patience::Forever)
    }

    /// # Errors
    /// [`PciError::Busy`] too: a region was busy for so long. What could be mapped is.
    pub(super) fn set_bus_master_within(&self, master: bool, patience: Patience) -> Result<(), PciError> {
        if !self.process.is_current() {
            return Err(PciError::Forked);
        }
        self.gate.set(master);
        self.settle(|_| true, patience)
    }
}
