//! A PCI device of the kernel's vfio, by its descriptor.

use super::abi;
use super::bar::{VfioBar, VfioBarBuilder};
use super::config::Config;
use super::error::VfioError;
use super::hot_reset::{self, Function};
use super::info::RegionInfo;
use super::memory_bit::MemoryBit;
use super::reply::Reply;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// A PCI device of the kernel's vfio, by its descriptor. It holds the descriptor, and so the device; a clone is the same.
///
/// ```no_run
/// use revocable_mmio::vfio::{Function, MemoryBit, VfioDevice, VfioError};
/// use revocable_mmio::MapOptions;
/// # use std::os::fd::{AsFd, OwnedFd};
/// # fn open() -> std::io::Result<OwnedFd> {
/// #     let device = std::fs::File::options().read(true).write(true).open("/dev/vfio/devices/vfio0")?;
/// #     Ok(device.into())
/// # }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = VfioDevice::new(open()?)?; // `virtual_function()` if it is one
/// let bar = device.bar(0)?.build(device.as_fd())?;
/// let mapping = bar.region().ok_or("the whole BAR can be mapped")?.map(MapOptions::new())?;
///
/// let mut command = [0; 2];
/// device.read_config(4, &mut command)?;
/// device.write_config(4, &[command[0] | 2, command[1]])?; // memory on
/// assert!(device.is_memory_enabled() && device.config_size() >= 256);
///
/// if device.can_be_reset()? {
///     bar.group().reset(|_| device.reset().map_err(std::io::Error::other))?; // accesses wait meanwhile
/// } else {
///     for Function { group, bus, devfn, .. } in device.hot_reset_functions()? {
///         println!("the bus's reset reaches {bus:02x}:{devfn:02x} of group {group}");
///     }
/// }
///
/// device.enter_low_power()?; // the kernel revokes
/// assert!(mapping.read::<u32>(0).is_err());
/// let memory: &MemoryBit = device.memory_bit();
/// assert!(!memory.is_on(device.as_fd()));
/// device.exit_low_power()?;
///
/// /// A device of another library's descriptor: its registers only.
/// fn registers(device: std::os::fd::BorrowedFd<'_>) -> Result<MemoryBit, VfioError> {
///     Ok(MemoryBit::of(device)?.virtual_function())
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct VfioDevice {
    fd: Arc<OwnedFd>,
    pub(super) config: Config,
    memory_bit: MemoryBit,
}

impl VfioDevice {
    /// A device by its descriptor, as `VFIO_GROUP_GET_DEVICE_FD` gives it, or /dev/vfio/devices bound to an iommufd.
    ///
    /// # Errors
    /// The kernel's, or a device that is not PCI.
    pub fn new(fd: OwnedFd) -> Result<Self, VfioError> {
        let config = Config::of(fd.as_fd())?;
        let memory_bit = MemoryBit::of(fd.as_fd())?;
        Ok(Self { fd: Arc::new(fd), config, memory_bit })
    }

    /// A file that stands for a device, with its configuration space at this offset.
    #[cfg(test)]
    pub(super) fn of_file(fd: OwnedFd, offset: u64) -> Self {
        let config = Config::at(offset);
        Self { fd: Arc::new(fd), config, memory_bit: MemoryBit::at(config) }
    }

    /// The device is an SR-IOV virtual function. Before its BARs are made.
    #[must_use]
    pub fn virtual_function(mut self) -> Self {
        self.memory_bit = self.memory_bit.virtual_function();
        self
    }

    /// Starts making a BAR, 0 to 5, which asks this device's registers whether the memory is on. Build it with this device's
    /// descriptor.
    ///
    /// # Errors
    /// As [`RegionInfo::ask`].
    pub fn bar(&self, index: u32) -> Result<VfioBarBuilder, VfioError> {
        let builder = VfioBar::builder(RegionInfo::ask(self.as_fd(), index)?);
        Ok(builder.name(format!("vfio BAR{index}")).memory_bit(self.memory_bit.clone()))
    }

    /// The registers that turn its memory off.
    pub fn memory_bit(&self) -> &MemoryBit {
        &self.memory_bit
    }

    /// True if its memory is on, as its registers say.
    pub fn is_memory_enabled(&self) -> bool {
        self.memory_bit.is_on(self.as_fd())
    }

    /// The size of its configuration space, in bytes: 256, or 4096 for PCI Express.
    pub fn config_size(&self) -> u64 {
        self.config.size
    }

    /// Reads configuration space.
    ///
    /// # Errors
    /// The kernel's; EFAULT outside of it.
    pub fn read_config(&self, at: u64, into: &mut [u8]) -> Result<(), VfioError> {
        Ok(self.config.read(self.as_fd(), at, into)?)
    }

    /// Writes configuration space. A write that turns the memory off takes it from every mapping, by the kernel's hand;
    /// regions stay enabled, and refuse as their mappings' policies say.
    ///
    /// # Blocking
    /// Until every mapping of every process has lost the memory; for Function Level Reset, until its end.
    ///
    /// # Errors
    /// As [`read_config`](Self::read_config).
    pub fn write_config(&self, at: u64, bytes: &[u8]) -> Result<(), VfioError> {
        Ok(self.config.write(self.as_fd(), at, bytes)?)
    }

    /// True if the function can be reset on its own.
    ///
    /// # Errors
    /// The kernel's.
    pub fn can_be_reset(&self) -> Result<bool, VfioError> {
        /// `VFIO_DEVICE_FLAGS_RESET`.
        const RESET: u32 = 1;
        let reply = abi::device_info(self.as_fd())?;
        Ok(Reply::new("struct vfio_device_info", &reply).u32(4)? & RESET != 0)
    }

    /// Resets the function (`VFIO_DEVICE_RESET`). For accesses that wait meanwhile, whatever they are, call it inside of
    /// [`ResetGroup::reset`](crate::ResetGroup::reset).
    ///
    /// # Errors
    /// The kernel's; EINVAL: there is no way to reset it.
    pub fn reset(&self) -> Result<(), VfioError> {
        Ok(abi::reset(self.as_fd())?)
    }

    /// The functions that a reset of the bus reaches (`VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`).
    ///
    /// # Errors
    /// The kernel's; ENODEV: on a root bus.
    pub fn hot_reset_functions(&self) -> Result<Vec<Function>, VfioError> {
        hot_reset::parse(&abi::hot_reset_info(self.as_fd())?)
    }

    /// Resets the bus (`VFIO_DEVICE_PCI_HOT_RESET`). `groups` has the group of every function that it reaches, each once. For
    /// a device of an iommufd it is empty, and all of them have to be that iommufd's.
    ///
    /// # Errors
    /// The kernel's; EINVAL: a group is missing, or the device is an iommufd's and `groups` is not empty.
    pub fn hot_reset(&self, groups: &[BorrowedFd<'_>]) -> Result<(), VfioError> {
        Ok(abi::hot_reset(self.as_fd(), groups)?)
    }

    /// Enters runtime low power (Linux 6.1): the kernel takes the memory from every mapping until
    /// [`exit_low_power`](Self::exit_low_power). The BARs of this device know of it.
    ///
    /// # Errors
    /// The kernel's; EINVAL: it is in low power already.
    pub fn enter_low_power(&self) -> Result<(), VfioError> {
        abi::low_power(self.as_fd(), true)?;
        self.memory_bit.set_low_power(true);
        Ok(())
    }

    /// Leaves runtime low power.
    ///
    /// # Errors
    /// The kernel's.
    pub fn exit_low_power(&self) -> Result<(), VfioError> {
        abi::low_power(self.as_fd(), false)?;
        self.memory_bit.set_low_power(false);
        Ok(())
    }
}

impl AsFd for VfioDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Debug for VfioDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VfioDevice").field("fd", &self.fd).finish_non_exhaustive()
    }
}
