//! Whether a PCI device's memory is on, as its configuration space says.

use super::config::{self, Config};
use super::error::VfioError;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The registers that turn a device's memory off: PCI_COMMAND's memory bit, and the power state in PMCSR. It keeps no
/// descriptor.
///
/// For [`RegionBuilder::memory_enabled`](crate::RegionBuilder::memory_enabled). It asks as the kernel does
/// (`__vfio_pci_memory_enabled`): off if the bit is clear, in D3hot, in runtime low power, or if the device does not answer.
#[derive(Clone, Debug)]
pub struct MemoryBit {
    config: Config,
    /// Where PMCSR is.
    power: Option<u64>,
    virtual_function: bool,
    /// No register shows runtime low power.
    low_power: Arc<AtomicBool>,
}

impl MemoryBit {
    /// Finds the registers of a device.
    ///
    /// # Errors
    /// The kernel's; a device that is not PCI; or a reply that contradicts itself.
    pub fn of(device: BorrowedFd<'_>) -> Result<Self, VfioError> {
        let config = Config::of(device)?;
        let power = config.capability(device, config::CAP_POWER)?.map(|at| at + config::PM_CTRL);
        Ok(Self { config, power, virtual_function: false, low_power: Arc::default() })
    }

    /// Of a file that stands for a device without power management.
    #[cfg(test)]
    pub(super) fn at(config: Config) -> Self {
        Self { config, power: None, virtual_function: false, low_power: Arc::default() }
    }

    /// The device is an SR-IOV virtual function: its memory bit does not turn its memory off.
    #[must_use]
    pub fn virtual_function(mut self) -> Self {
        self.virtual_function = true;
        self
    }

    /// True if the device's memory is on.
    ///
    /// # Signal safety
    /// Async-signal-safe: two reads of the descriptor.
    pub fn is_on(&self, device: BorrowedFd<'_>) -> bool {
        let bit = |command| self.virtual_function || command & config::COMMAND_MEMORY != 0;
        let awake = |at| self.config.u16(device, at).is_ok_and(|power| power & config::PM_STATE < config::D3HOT);
        // Relaxed: a thread that enters low power orders its own accesses; others may come before or after.
        !self.low_power.load(Ordering::Relaxed)
            && self.config.u16(device, config::COMMAND).is_ok_and(bit)
            && self.power.is_none_or(awake)
    }

    pub(super) fn is_virtual_function(&self) -> bool {
        self.virtual_function
    }

    pub(super) fn set_low_power(&self, entered: bool) {
        self.low_power.store(entered, Ordering::Relaxed);
    }
}
