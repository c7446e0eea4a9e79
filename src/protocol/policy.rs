//! The policies for disabled regions.

/// What an access by raw pointer or in a system call gets in a mapping while its region is disabled. The guide says
/// [which to take](crate::guide::choosing).
///
/// ```
/// use revocable_mmio::{AccessError, MapOptions, OnDisabled};
/// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
/// let plain = region.map(MapOptions::new())?; // Sigbus
/// let guest = region.map(MapOptions::new().on_disabled(OnDisabled::AllOnes))?;
/// region.disable()?;
/// assert_eq!(plain.read::<u32>(0), Err(AccessError::Disabled { offset: 0 }));
/// assert_eq!(guest.read::<u32>(0), Ok(u32::MAX));
/// guest.write(0, 1_u32)?; // lost
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum OnDisabled {
    /// SIGBUS with `BUS_ADRERR` and the exact byte in `si_addr`, or EFAULT in a system call, as vfio-pci does it.
    /// This crate's accessors return [`AccessError::Disabled`](crate::AccessError::Disabled).
    #[default]
    Sigbus,
    /// What a PCI Unsupported Request gives: loads read all-ones, stores are lost. A raw store may be read back through the
    /// same mapping until `enable()`, and is then gone; each page that one touches costs a page of memory until then.
    AllOnes,
    /// For user mode: loads and stores wait for `enable()`. System calls and virtual CPUs get EFAULT, whatever the
    /// privileges: while its thread has a signal pending the kernel does not sleep in a fault of its own, but faults again
    /// and again (`fault_signal_pending`). Needs a userfaultfd for user-mode faults (Linux 5.11, no privilege).
    Block,
}
